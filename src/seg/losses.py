"""Losses of two sub-networks on labelled and unlabelled slices (after arXiv 2311.12617, section 3).

Shapes: logits and probabilities (B, K, H, W), label maps int64 (B, H, W), pixel masks bool (B, H, W). Every
loss is a scalar that keeps the graph to its network; it is 0 where no pixel contributes. Pixels are excluded
by weights or by `IGNORED`: a boolean index has a shape that depends on data, so that a GPU would be waited
for.
"""

import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

IGNORED = 255
"""Label of pixels that are excluded from a loss."""

_dice = DiceLoss("multiclass", ignore_index=IGNORED)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy + Dice over the pixels that are not `IGNORED`.

    Dice is computed over the whole batch and averaged over all classes. A class that is absent from the
    labels counts 0, so that only the cross-entropy penalises an organ predicted where there is none.

    Args:
        logits: logits before softmax, which is applied here.
    """
    # segmentation-models-pytorch 0.5 accepts only contiguous tensors
    return pixel_loss(logits, labels) + _dice(logits.float().contiguous(), labels.contiguous())


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits over the pixels that are not `IGNORED`."""
    count = (labels != IGNORED).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum") / count


def verification_loss(probabilities: Tensor, other: Tensor, labels: Tensor, confidence: float) -> Tensor:
    """Squared error to the label where the two sub-networks confidently disagree, so one of them is wrong.

    Args:
        probabilities: probabilities of the sub-network that learns.
        other: probabilities of the other one; no gradient flows to it.
        confidence: minimum probability of the class that each predicts.

    Returns:
        Squared error summed over the classes and the disputed pixels, divided by the number of all pixels:
        0 to 2. Divided by the number of disputed pixels, a few of them would outweigh all others.
    """
    (sure, chosen), (other_sure, other_chosen) = probabilities.detach().max(1), other.detach().max(1)
    disputed = (chosen != other_chosen) & (sure >= confidence) & (other_sure >= confidence)  # (B, H, W)
    truth = F.one_hot(labels, probabilities.shape[1]).movedim(-1, 1)  # (B, K, H, W)
    error = (probabilities - truth).square().sum(1)
    return (error * disputed).mean()


def reliable_pixels(first: Tensor, second: Tensor, unreliable: float) -> Tensor:
    """Return the pixels that are not among the most uncertain of either sub-network.

    Args:
        first, second: probabilities of the two sub-networks.
        unreliable: share of pixels, those of highest entropy, that count as uncertain in a sub-network.

    Returns:
        bool (B, H, W); all True if the share is 0.
    """
    is_uncertain = []
    for probabilities in (first, second):
        entropy = torch.special.entr(probabilities.detach()).sum(1)  # (B, H, W)
        rank = round((1 - unreliable) * entropy.numel())
        limit = entropy.flatten().kthvalue(max(1, rank)).values
        is_uncertain.append(entropy > limit)
    return ~(is_uncertain[0] & is_uncertain[1])


def pseudo_labels(probabilities: Tensor, reliable: Tensor) -> Tensor:
    """Return the classes that one sub-network teaches the other, `IGNORED` where unreliable; no graph."""
    return probabilities.detach().argmax(1).masked_fill(~reliable, IGNORED)


def class_prototypes(embedding: Tensor, classes: Tensor, reliable: Tensor, count: int) -> Tensor:
    """Mean feature direction of the reliable pixels of each class.

    Args:
        embedding: (B, E, h, w) pixel features, normalised here.
        classes: int64 (B, h, w).
        reliable: bool (B, h, w).
        count: number of classes.

    Returns:
        (count, E) of unit length, or 0 for a class without reliable pixels; no graph.
    """
    features = F.normalize(embedding.detach().float(), dim=1)
    members = F.one_hot(classes, count).movedim(-1, 1) * reliable[:, None]  # (B, K, h, w)
    return F.normalize(torch.einsum("bkhw,behw->ke", members.float(), features), dim=1)


def prototype_contrast(
    embedding: Tensor, classes: Tensor, unreliable: Tensor, prototypes: Tensor, temperature: float
) -> Tensor:
    """Pull the feature of each unreliable pixel to the prototype of its class and push it from the others.

    Mean of `-log softmax(cos(f, prototypes) / temperature)[class]` over the unreliable pixels of classes
    that have a prototype.

    Args:
        embedding: (B, E, h, w) features of the sub-network that learns.
        classes: int64 (B, h, w), the predicted class of each pixel.
        unreliable: bool (B, h, w).
        prototypes: (K, E) from `class_prototypes`.
    """
    has_prototype = prototypes.any(1)  # (K,)
    selected = unreliable & has_prototype[classes]
    features = F.normalize(embedding.float(), dim=1)
    similarity = torch.einsum("ke,behw->bkhw", prototypes / temperature, features)
    # not -inf, which would make gradients of excluded pixels NaN where no class has a prototype
    similarity = similarity.masked_fill(~has_prototype[:, None, None], torch.finfo(similarity.dtype).min)
    return pixel_loss(similarity, classes.masked_fill(~selected, IGNORED))
