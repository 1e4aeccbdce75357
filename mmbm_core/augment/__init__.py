"""Augmentation, one file a modality: a config, and pure functions of samples and their seeds (`Draws`).

Training applies them to whole batches, with new seeds at every step; texts are changed before they are tokenized.
"""

from mmbm_core.augment.audio import AudioAugment, augment_waveforms, mask_spectrogram
from mmbm_core.augment.cross import PairAugment, Pairs, blend_images, draw_pairs, regroup
from mmbm_core.augment.draws import Draws, sample_seed
from mmbm_core.augment.image import ImageAugment, augment_images
from mmbm_core.augment.mix import MixAugment, mix_images, mix_labels
from mmbm_core.augment.text import TextAugment, augment_text

__all__ = [
    "AudioAugment",
    "Draws",
    "ImageAugment",
    "MixAugment",
    "PairAugment",
    "Pairs",
    "TextAugment",
    "augment_images",
    "augment_text",
    "augment_waveforms",
    "blend_images",
    "draw_pairs",
    "mask_spectrogram",
    "mix_images",
    "mix_labels",
    "regroup",
    "sample_seed",
]
