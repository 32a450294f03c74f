"""EfficientNet (1905.11946): torchvision's, under the names and the roof that all models have here."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import EfficientNetConfig
from vitrail.errors import UserError
from vitrail.model.cnn import CNN, classifier_of
from vitrail.model.heads import Pooling


class EfficientNet(CNN):
    """Stem, stages of inverted bottlenecks, a 1x1 convolution, mean over the map, dropout, classifier."""

    config: EfficientNetConfig

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _trunk(config)
        self.pooling = Pooling(config.head, ())
        self.classifier = classifier_of(config)

    def staged(self, images: Tensor) -> list[Tensor]:
        """See ``CNN.stage_maps``."""
        x: Tensor = self.trunk[0](images)
        found: list[Tensor] = []
        for stage in list(self.trunk)[1:-1]:
            x = stage(x)
            found.append(x)
        return found

    def last(self, x: Tensor) -> Tensor:
        """A 1x1 convolution with BatchNorm and SiLU."""
        found: Tensor = self.trunk[-1](x)
        return found

    def classify(self, features: Tensor) -> Tensor:
        """See ``CNN.classify``; there is dropout while training."""
        return super().classify(F.dropout(features, self.config.dropout, self.training))

    def train(self, mode: bool = True) -> EfficientNet:
        """As of any module, but BatchNorms that do not learn stay as they are: frozen layers give the same always."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d) and not part.weight.requires_grad:
                part.eval()
        return self

    def blocks(self) -> list[nn.Module]:
        """See ``CNN.blocks``."""
        return [block for stage in list(self.trunk.children())[1:-1] for block in stage.children()]

    def depth(self, parameter: str) -> int:
        """See ``CNN.depth``."""
        stages = self.config.stages
        place = re.match(r"trunk\.(\d+)\.(\d+)\.", parameter)
        if place is None or int(place[1]) > len(stages):
            return self.config.layers + 1
        if int(place[1]) == 0:
            return 0
        return sum(stage.layers for stage in stages[: int(place[1]) - 1]) + int(place[2]) + 1


def _trunk(config: EfficientNetConfig) -> nn.Sequential:
    """torchvision's convolutions, from the stem to the last 1x1.

    Raises:
        UserError: torchvision is not installed.
    """
    try:
        from torchvision.models import efficientnet  # takes a second, which no other model should cost
    except ImportError:
        raise UserError("EfficientNet is torchvision's: pip install 'vitrail[cnn]'.") from None
    stages = [
        efficientnet.MBConvConfig(one.expansion, one.kernel, one.stride, one.inputs, one.outputs, one.layers)
        for one in config.stages
    ]

    def norm(channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, config.norm_eps, config.norm_momentum)

    model: Any = efficientnet.EfficientNet(
        stages, dropout=0.0, stochastic_depth_prob=config.drop_path, num_classes=1, norm_layer=norm
    )
    trunk: nn.Sequential = model.features
    return trunk
