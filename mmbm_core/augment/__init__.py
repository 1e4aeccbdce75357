"""Training-time augmentation, one file a modality: a config, and functions of a batch and a generator.

An encoder that trains applies it to whole batches (`encoder.augment = ImageAugment(...)`), never outside training. With
`generator=None` torch's global one on the CPU draws, which the trainer seeds anew for every step and worker.
"""

from mmbm_core.augment.audio import AudioAugment, augment_waveforms, mask_spectrogram
from mmbm_core.augment.image import ImageAugment, augment_images

__all__ = ["AudioAugment", "ImageAugment", "augment_images", "augment_waveforms", "mask_spectrogram"]
