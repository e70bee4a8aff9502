"""torchvision's classifiers of images and videos and its segmenters, one of each family or kind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models import efficientnet, mobilenetv3, segmentation, video
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.video.mvit import MSBlockConfig

from families import Case, features, plenty
from families.narrowing import CLASSES, narrowed

Build = Callable[[], nn.Module]


def images(build: Build, size: int, factor: int = 1) -> Case:
    with narrowed(factor):
        model = build()
    return Case(model, features(3, size, size), plenty(size))


def videos(build: Build, *shape: int, factor: int = 1) -> Case:
    with narrowed(factor):
        model = build()
    return Case(model, features(3, *shape), 4)


def resnet(block: type[Any], **kw: Any) -> nn.Module:
    return models.ResNet(block, [1, 1, 1, 1], CLASSES, **kw)


def vgg(norm: bool) -> nn.Module:
    plan: list[str | int] = [64, "M", 128, "M", 256, "M", 512, "M", 512, "M"]
    return models.VGG(models.vgg.make_layers(plan, norm), CLASSES)


def inverted(arch: str, segments: bool = False) -> nn.Module:
    settings, last = mobilenetv3._mobilenet_v3_conf(arch, dilated=segments)
    return models.MobileNetV3(settings, last, CLASSES)


def efficient() -> nn.Module:
    settings, last = efficientnet._efficientnet_conf(
        "efficientnet_b0", width_mult=1.0, depth_mult=0.4
    )
    return models.EfficientNet(settings, 0.2, num_classes=CLASSES, last_channel=last)


def efficient_2() -> nn.Module:
    settings = [
        FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        FusedMBConvConfig(4, 3, 2, 8, 16, 1),
        MBConvConfig(4, 3, 2, 16, 16, 2),
    ]
    return models.EfficientNet(settings, 0.2, num_classes=CLASSES, last_channel=32)


def regnet(ratio: float | None) -> nn.Module:
    blocks = BlockParams.from_init_params(4, 8, 8.0, 2.0, 4, se_ratio=ratio)
    return models.RegNet(blocks, CLASSES, stem_width=8)


def convnext() -> nn.Module:
    return models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=10)


def swin(second: bool) -> nn.Module:
    newer = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if second else {}
    return models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=10, **newer)


def maxvit() -> nn.Module:
    sizes = {"stem_channels": 8, "partition_size": 2, "block_channels": [8, 16], "head_dim": 4}
    return models.MaxVit(
        (16, 16), block_layers=[1, 1], stochastic_depth_prob=0.0, num_classes=10, **sizes
    )


def mvit() -> nn.Module:
    kernel, one = [3, 3, 3], [1, 1, 1]
    blocks = [
        MSBlockConfig(1, 8, 8, kernel, kernel, one, [1, 2, 2]),
        MSBlockConfig(2, 8, 16, kernel, kernel, [1, 2, 2], one),
    ]
    return video.MViT((32, 32), 4, blocks, True, False, True, True, num_classes=10)


def swin_3d() -> nn.Module:
    return video.SwinTransformer3d([2, 4, 4], 16, [2, 2], [2, 4], [2, 2, 2], num_classes=10)


def separable_video() -> nn.Module:
    model = video.S3D(CLASSES)
    model.avgpool = nn.AvgPool3d(2, 1)  # not of 7 x 7, as of larger images
    return model


def residual_video(convolution: Any, rest: Any, stem: Any) -> nn.Module:
    makers = [convolution, *[rest] * 3]
    return video.VideoResNet(video.resnet.BasicBlock, makers, [1, 1, 1, 1], stem, CLASSES)


def backbone(kind: str) -> tuple[nn.Module, int]:
    """The part of a classifier that a segmenter reads, and its channels."""
    if kind == "resnet":
        dilated = resnet(Bottleneck, replace_stride_with_dilation=[False, True, True])
        return IntermediateLayerGetter(dilated, {"layer4": "out"}), 2048
    body = inverted("mobilenet_v3_large", True).features
    return IntermediateLayerGetter(body, {str(len(body) - 1): "out"}), body[-1].out_channels


def segmenter(cls: type[nn.Module], head: Any, kind: str) -> nn.Module:
    body, channels = backbone(kind)
    return cls(body, head(channels, CLASSES), None)


def lraspp() -> nn.Module:
    body = inverted("mobilenet_v3_large", True)
    return segmentation.lraspp._lraspp_mobilenetv3(body, CLASSES)


_part = functools.partial
_videos = video.resnet

IMAGES: dict[str, tuple[Build, int, int]] = {
    "alexnet": (_part(models.AlexNet, CLASSES), 64, 16),
    "convnext": (convnext, 32, 1),
    "densenet": (_part(models.DenseNet, 4, (2, 2, 2, 2), 8, num_classes=CLASSES), 32, 1),
    "efficientnet": (efficient, 32, 8),
    "efficientnet v2": (efficient_2, 32, 1),
    "googlenet": (_part(models.GoogLeNet, CLASSES, aux_logits=False, init_weights=False), 64, 8),
    "inception v3": (_part(models.Inception3, CLASSES, False, init_weights=False), 96, 8),
    "maxvit": (maxvit, 16, 1),
    "mnasnet": (_part(models.MNASNet, 0.25, CLASSES), 32, 4),
    "mobilenet v2": (_part(models.MobileNetV2, CLASSES), 32, 8),
    "mobilenet v3, large": (_part(inverted, "mobilenet_v3_large"), 32, 8),
    "mobilenet v3, small": (_part(inverted, "mobilenet_v3_small"), 32, 8),
    "regnet x": (_part(regnet, None), 32, 1),
    "regnet y": (_part(regnet, 0.25), 32, 1),
    "resnet, basic": (_part(resnet, BasicBlock), 32, 8),
    "resnet, bottleneck": (_part(resnet, Bottleneck), 32, 8),
    "resnext": (_part(resnet, Bottleneck, groups=32, width_per_group=4), 32, 8),
    "wide resnet": (_part(resnet, Bottleneck, width_per_group=128), 32, 8),
    "shufflenet v2": (_part(models.ShuffleNetV2, [2, 2, 2], [8, 16, 32, 64, 64], CLASSES), 32, 1),
    "squeezenet 1.0": (_part(models.SqueezeNet, "1_0", CLASSES), 48, 4),
    "squeezenet 1.1": (_part(models.SqueezeNet, "1_1", CLASSES), 48, 4),
    "swin": (_part(swin, False), 16, 1),
    "swin v2": (_part(swin, True), 16, 1),
    "vgg": (_part(vgg, False), 32, 16),
    "vgg, batch norm": (_part(vgg, True), 32, 16),
    "vit": (_part(models.VisionTransformer, 16, 4, 2, 4, 16, 32, num_classes=CLASSES), 16, 1),
    "deeplab v3, resnet": (_part(segmenter, segmentation.DeepLabV3, DeepLabHead, "resnet"), 32, 16),
    "deeplab v3, mobilenet": (_part(segmenter, segmentation.DeepLabV3, DeepLabHead, "v3"), 32, 8),
    "fcn": (_part(segmenter, segmentation.FCN, FCNHead, "resnet"), 32, 16),
    "lraspp": (lraspp, 32, 8),
}
"""Networks, sizes of images and what widths are divided by."""

VIDEOS: dict[str, tuple[Build, tuple[int, ...], int]] = {
    "r3d": (
        _part(residual_video, _videos.Conv3DSimple, _videos.Conv3DSimple, _videos.BasicStem),
        (4, 16, 16),
        16,
    ),
    "mc3": (
        _part(residual_video, _videos.Conv3DSimple, _videos.Conv3DNoTemporal, _videos.BasicStem),
        (4, 16, 16),
        16,
    ),
    "r(2+1)d": (
        _part(residual_video, _videos.Conv2Plus1D, _videos.Conv2Plus1D, _videos.R2Plus1dStem),
        (4, 16, 16),
        16,
    ),
    "s3d": (separable_video, (16, 64, 64), 8),
    "mvit v2": (mvit, (4, 32, 32), 1),
    "swin 3d": (swin_3d, (4, 16, 16), 1),
}

TABLE: dict[str, Callable[[], Case]] = {
    **{name: _part(images, b, size, factor) for name, (b, size, factor) in IMAGES.items()},
    **{name: _part(videos, b, *s, factor=factor) for name, (b, s, factor) in VIDEOS.items()},
}
