"""Losses of two sub-networks on labelled and unlabelled slices (after arXiv 2311.12617, section 3).

Shapes: logits and probabilities (B, K, H, W), label maps int64 (B, H, W), pixel masks bool (B, H, W). Every
loss is a scalar that keeps the graph to its student, also where no pixel takes part (it is then 0).
"""

import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

IGNORED = 255
"""In a label map: a pixel that takes no part."""

_dice = DiceLoss("multiclass", ignore_index=IGNORED)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy + Dice, of logits (softmax is taken here, once), over the pixels that are not `IGNORED`.

    Dice is that of the whole batch, a mean over all classes, of which those that the labels do not hold count
    0: cross-entropy alone tells of an organ where there is none.
    """
    # segmentation-models-pytorch 0.5 takes whole tensors only
    return pixel_loss(logits, labels) + _dice(logits.float().contiguous(), labels.contiguous())


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, of logits, over the pixels that are not `IGNORED`."""
    taking_part = (labels != IGNORED).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum") / taking_part


def verification_loss(probabilities: Tensor, other: Tensor, labels: Tensor, confidence: float) -> Tensor:
    """Squared error to the label where both sub-networks are sure of different classes: one of them is wrong.

    Args:
        probabilities: of the sub-network that learns.
        other: of the other one; no gradient flows to it.
        confidence: least probability of either's class.

    Returns:
        Squared error summed over the classes and these pixels, over the number of all pixels: 0 to 2. Over
        the number of disputed pixels, a handful of them would outweigh all others.
    """
    (sure, chosen), (other_sure, other_chosen) = probabilities.detach().max(1), other.detach().max(1)
    disputed = (chosen != other_chosen) & (sure >= confidence) & (other_sure >= confidence)  # (B, H, W)
    truth = F.one_hot(labels, probabilities.shape[1]).movedim(-1, 1)  # (B, K, H, W)
    error = (probabilities - truth).square().sum(1)
    return (error * disputed).mean()


def reliable_pixels(first: Tensor, second: Tensor, unreliable: float) -> Tensor:
    """Pixels that are not among the most uncertain in both sub-networks.

    Args:
        first, second: probabilities of either.
        unreliable: share of pixels, those of the highest entropy, that are uncertain in a sub-network.

    Returns:
        bool (B, H, W); all True with a share of 0.
    """
    is_uncertain = []
    for probabilities in (first, second):
        entropy = torch.special.entr(probabilities.detach()).sum(1)  # (B, H, W)
        rank = round((1 - unreliable) * entropy.numel())
        limit = entropy.flatten().kthvalue(max(1, rank)).values
        is_uncertain.append(entropy > limit)
    return ~(is_uncertain[0] & is_uncertain[1])


def pseudo_labels(probabilities: Tensor, reliable: Tensor) -> Tensor:
    """The classes that a sub-network teaches the other, `IGNORED` where they are not reliable; no graph."""
    return probabilities.detach().argmax(1).masked_fill(~reliable, IGNORED)


def class_prototypes(embedding: Tensor, classes: Tensor, reliable: Tensor, count: int) -> Tensor:
    """The mean direction of the reliable pixels of every class.

    Args:
        embedding: (B, E, h, w) pixel features; their direction alone counts.
        classes: int64 (B, h, w).
        reliable: bool (B, h, w).
        count: number of classes.

    Returns:
        (count, E) of length 1, or 0 for a class without reliable pixels; no graph.
    """
    features = F.normalize(embedding.detach().float(), dim=1).movedim(1, -1)[reliable]  # (P, E)
    sums = features.new_zeros(count, features.shape[1]).index_add_(0, classes[reliable], features)
    return F.normalize(sums, dim=1)


def prototype_contrast(
    embedding: Tensor, classes: Tensor, unreliable: Tensor, prototypes: Tensor, temperature: float
) -> Tensor:
    """Draws each unreliable pixel's feature to the prototype of its class and pushes it from the others.

    The mean of `-log softmax(cos(f, prototypes) / temperature)[class]` over the unreliable pixels of classes
    that have a prototype.

    Args:
        embedding: (B, E, h, w) of the sub-network that learns.
        classes: int64 (B, h, w), the class that each pixel is taken for.
        unreliable: bool (B, h, w).
        prototypes: (K, E) of `class_prototypes`.
    """
    is_known = prototypes.any(1)  # (K,)
    taking_part = unreliable & is_known[classes]
    features = F.normalize(embedding.float(), dim=1).movedim(1, -1)[taking_part]  # (P, E)
    similarity = (features @ prototypes.T / temperature).masked_fill(~is_known, float("-inf"))
    if len(features) == 0:
        return embedding.sum() * 0.0
    return F.cross_entropy(similarity, classes[taking_part])
