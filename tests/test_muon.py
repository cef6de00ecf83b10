"""Muon: the orthogonalisation, the step, and processes that share it out."""

import pytest
import torch
from torch.nn import Parameter

from cai.models.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 12, 5), (2, 5, 12)])
def test_orthogonalise_keeps_singular_vectors_and_evens_out_singular_values(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonalise(matrices)
    assert found.shape == matrices.shape and found.dtype == torch.float32
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    rotated = u.mT @ found @ vh.mT  # diagonal, if the singular vectors are the same
    diagonal = rotated.diagonal(dim1=-2, dim2=-1)
    assert (rotated - torch.diag_embed(diagonal)).abs().max() < 0.05
    big = diagonal[s > 0.05 * s.amax(dim=-1, keepdim=True)]  # tiny ones are not lifted all the way in five steps
    assert big.min() > 0.6 and big.max() < 1.3
    assert s.max() / s.min() > 2  # they were not even before


def test_orthogonalise_does_not_see_scale() -> None:
    matrices = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(orthogonalise(1024 * matrices), orthogonalise(matrices), atol=1e-3)
    assert orthogonalise(torch.zeros(1, 3, 3)).abs().max() == 0


def parameters() -> list[Parameter]:
    generator = torch.Generator().manual_seed(2)
    found = [Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 4), (8, 4), (4, 4))]
    for parameter in found:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return found


def test_a_step_is_nesterov_momentum_orthogonalised() -> None:
    ours = parameters()
    before = [p.detach().clone() for p in ours]
    muon = Muon(ours, momentum=0.9, weight_decay=0.5)
    muon.step(0.1)
    for parameter, old, stretch in zip(ours, before, (1.0, 2**0.5, 1.0), strict=True):
        assert parameter.grad is not None
        buffer = 0.1 * parameter.grad  # from zero: (1 - momentum) grad
        ahead = 0.1 * parameter.grad + 0.9 * buffer
        expected = old * (1 - 0.1 * 0.5) - 0.1 * stretch * orthogonalise(ahead[None])[0]
        assert torch.allclose(parameter, expected, atol=2e-3)


def test_the_momentum_of_a_checkpoint_goes_on() -> None:
    one, other = parameters(), parameters()
    muon = Muon(one)
    muon.step(0.1)
    again = Muon(other)
    again.load_state_dict(muon.state_dict())
    for a, b in zip(one, other, strict=True):
        b.data.copy_(a)
    muon.step(0.1)
    again.step(0.1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(muon.buffers[0], torch.zeros(4, 4))


def test_each_process_orthogonalises_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two ranks would sum up is what one process does alone."""
    alone = parameters()
    Muon(alone).step(0.1)
    shares: list[torch.Tensor] = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: shares.append(flat.clone()))
    for rank in (0, 1):
        Muon(parameters(), rank=rank, world_size=2).step(0.1)
    assert ((shares[0] != 0) & (shares[1] != 0)).sum() == 0
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: flat.add_(shares[1]))
    first = parameters()
    Muon(first, rank=0, world_size=2).step(0.1)
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(alone, first, strict=True))
