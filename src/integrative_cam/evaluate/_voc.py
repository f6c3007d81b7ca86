"""The 20 classes of Pascal VOC, and the ImageNet classes that are kinds of them by WordNet's hypernyms."""

from __future__ import annotations

from collections.abc import Mapping

IMAGENET_CLASSES = 1000

VOC_TO_IMAGENET: Mapping[str, tuple[int, ...]] = {
    "aeroplane": (404, 895),  # airliner, warplane
    "bicycle": (444, 671),  # tandem, mountain bike
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "boat": (403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 871, 914),  # ships too, as VOC labels them
    "bottle": (440, 720, 737, 898, 907),  # beer, pill, pop, water, wine
    "bus": (654, 779, 874),  # minibus, school bus, trolleybus
    "car": (407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    "cat": tuple(range(281, 286)),
    "chair": (423, 559, 765, 857),  # barber chair, folding chair, rocking chair, throne
    "cow": (345,),  # ox
    "diningtable": (532,),
    "dog": tuple(range(151, 269)),
    "horse": (339,),  # sorrel
    "motorbike": (665, 670),  # moped, motor scooter
    "person": (981, 982, 983),  # ballplayer, groom, scuba diver
    "pottedplant": (738,),  # the pot: ImageNet has no potted plant
    "sheep": (348, 349),  # ram, bighorn
    "sofa": (831,),  # studio couch
    "train": (466, 547, 565, 705, 820),  # trains, locomotives, cars of trains
    "tvmonitor": (664, 782, 851),  # monitor, screen, television
}
"""VOC class -> indices of ImageNet-1k; the order of the keys is that of VOC's masks, whose first index is 1."""
