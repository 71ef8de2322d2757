"""Extreme eigenpairs of a symmetric operator by Lanczos' method, with the residual of each."""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from certify.errors import InputError, check_count
from certify.rng import Stream

Which = Literal["magnitude", "largest", "smallest", "both"]

_FIRST_ROWS = 32

_ENOUGH = 0.7
"""Share of a vector that a pass of orthogonalisation must leave to be the last. Source: Daniel et al. (1976)."""


class Operator(Protocol):
    """A symmetric linear map of R^p, such as `Hessian`."""

    @property
    def shape(self) -> tuple[int, int]:  # noqa: D102
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What products are worked out in; they are returned as float64."""
        ...

    @property
    def device(self) -> torch.device:  # noqa: D102
        ...

    def matvec(self, v: Tensor) -> Tensor:
        """Of (p,), as (p,)."""
        ...

    def matmat(self, v: Tensor) -> Tensor:
        """Of the columns of (p, k), as (p, k)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Eigenpairs, and how far each is from being one.

    Attributes:
        eigenvalues: (k,) float64; by falling magnitude for "magnitude", rising for "smallest", else falling.
        eigenvectors: (p, k) float64, orthonormal columns.
        residuals: (k,) float64, ||H v - lambda v||, from the products that were made: some eigenvalue of the operator
            lies within the residual of lambda. That no eigenvalue further out was missed is not proved by it.
        converged: (k,) bool, residual <= tolerance * |lambda|.
        products: Operator-vector products made.
        method: The frozen method.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    residuals: Tensor
    converged: Tensor
    products: int
    method: "Lanczos"

    def __str__(self) -> str:
        lines = [f"{int(self.converged.sum())} of {len(self.converged)} converged after {self.products} products"]
        for value, residual, done in zip(
            self.eigenvalues.tolist(), self.residuals.tolist(), self.converged.tolist(), strict=True
        ):
            lines.append(f"  {value:+.6e} +- {residual:.1e}{'' if done else '  not converged'}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Lanczos:
    """The extreme eigenpairs, by Lanczos' method with full reorthogonalisation and without restarts.

    Every vector of the basis is kept, in float64, beside its product: nothing that a product taught is thrown away,
    which makes products few, and costs 12 to 16 bytes of memory per parameter and product. The residuals reported come
    from those products, at no further one.

    Where the basis spans an invariant subspace, another random start looks for what is orthogonal to it, so multiple
    eigenvalues are found with their multiplicity.

    Args:
        k: Pairs; "both" gives so many of either end.
        which: "magnitude", "largest", "smallest" or "both" ends of the spectrum.
        tolerance: A pair has converged when its residual is at most tolerance * |eigenvalue|. Eigenvalues that the
            operator's rounding cannot tell from zero count with the size that it can tell.
        limit: Most products. What has not converged by then is returned as such.

    Raises:
        InputError: a value is out of range.

    Source: Lanczos (1950); Paige (1971) on residuals; Parlett (1998), chapter 13.
    """

    k: int = 20
    which: Which = "magnitude"
    tolerance: float = 1e-3
    limit: int = 500

    def __post_init__(self) -> None:
        check_count("k", self.k)
        if self.which not in get_args(Which):
            raise InputError(f"need which among {', '.join(get_args(Which))}; got {self.which!r}")
        if not 0 < self.tolerance < 1:
            raise InputError(f"need 0 < tolerance < 1; got {self.tolerance!r}")
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < self._pairs():
            raise InputError(f"need a limit of at least the {self._pairs()} pairs sought; got {self.limit!r}")

    def _pairs(self) -> int:
        return 2 * self.k if self.which == "both" else self.k

    def __call__(self, operator: Operator, *, rng: Stream) -> Spectrum:
        """Find the pairs.

        Args:
            operator: Symmetric.
            rng: Start vector i comes from its child i.

        Raises:
            InputError: more pairs are sought than the operator has, or it gives NaN or infinities.
        """
        p = operator.shape[0]
        if self._pairs() > p:
            raise InputError(f"need at most as many pairs as parameters, {p}; got {self._pairs()}")
        krylov = Krylov(operator, rng, keep_images=True)
        while len(krylov) < min(self.limit, p) and not self._has_converged(krylov):
            krylov.step()
        return self._measure(krylov)

    def _pick(self, values: np.ndarray, k: int) -> np.ndarray:
        """Positions, among rising values, of the k sought (k of either end for "both"), outermost first."""
        order = np.arange(len(values))
        match self.which:
            case "largest":
                return order[::-1][:k]
            case "smallest":
                return order[:k]
            case "magnitude":
                return np.argsort(-np.abs(values), kind="stable")[:k]
            case "both":
                return np.unique(np.concatenate([order[:k], order[-k:]]))[::-1]

    def _allowed(self, values: np.ndarray, unit: float) -> np.ndarray:
        floor = unit ** (2 / 3) * np.abs(values).max()
        return self.tolerance * np.maximum(np.abs(values), floor)

    def _settled(self, krylov: "Krylov", first: int, k: int) -> np.ndarray | None:
        """The values sought of the chains since `first`, if their residuals are small enough; else None."""
        if len(krylov) == first:
            return None
        values, vectors = krylov.ritz(first)
        picked = self._pick(values, k)
        residuals = krylov.remainder * np.abs(vectors[-1, picked])
        small = residuals <= self._allowed(values, krylov.unit)[picked]
        return values[picked] if small.all() else None

    def _has_converged(self, krylov: "Krylov") -> bool:
        found = self._settled(krylov, 0, self.k)
        if found is None or len(found) < self._pairs():
            return False
        begin = krylov.begin
        if begin == 0:
            return krylov.remainder > 0
        # A chain has ended, and holds one copy of each eigenvalue: the last one must have shown that it adds no other.
        if self._settled(krylov, begin, 1) is None:
            return False
        before, _ = krylov.ritz(0, begin)
        known = before[self._pick(before, self.k)]
        return len(known) == len(found) and bool((np.abs(known - found) <= self._allowed(found, krylov.unit)).all())

    def _measure(self, krylov: "Krylov") -> Spectrum:
        values, vectors = krylov.ritz()
        picked = self._pick(values, self.k)
        eigenvalues, coordinates = values[picked], torch.from_numpy(vectors[:, picked].copy())
        basis, images = krylov.vectors()
        coordinates = coordinates.to(basis.device)
        eigenvectors = basis.T @ coordinates
        residuals = torch.stack(
            [
                (images.T @ s.to(images.dtype)).double().sub_(value * u).norm()
                for s, value, u in zip(coordinates.T, eigenvalues.tolist(), eigenvectors.T, strict=True)
            ]
        ).cpu()
        return Spectrum(
            eigenvalues=torch.from_numpy(eigenvalues.copy()),
            eigenvectors=eigenvectors,
            residuals=residuals,
            converged=residuals <= torch.from_numpy(self._allowed(values, krylov.unit)[picked]),
            products=len(krylov),
            method=self,
        )


class Krylov:
    """Chains of orthonormal vectors in which a symmetric operator is tridiagonal.

    Args:
        operator: Symmetric.
        rng: Chain i starts at a random vector from its child i.
        keep_images: Keep the operator's products too, in its own dtype.

    Attributes:
        begin: Where the last chain begins.
        remainder: Norm of what the last product has outside the basis: Ritz vector s has the residual
            remainder * |s[-1]|. Exactly 0 where the chain has ended, the basis being invariant up to rounding.
        unit: The operator's unit of rounding.
    """

    def __init__(self, operator: Operator, rng: Stream, *, keep_images: bool) -> None:
        self._operator, self._rng = operator, rng
        self._p = operator.shape[0]
        self._basis = torch.empty((0, self._p), dtype=torch.float64, device=operator.device)
        self._images = torch.empty((0, self._p), dtype=operator.dtype, device=operator.device)
        self._keep_images = keep_images
        self._alpha: list[float] = []
        self._beta: list[float] = []
        self._chains = 0
        self.begin = 0
        self.remainder = 0.0
        self.unit = torch.finfo(operator.dtype).eps
        # Relative to the operator: what products in its dtype, and sums over the basis in float64, leave of a zero.
        self._noise = max(4 * self.unit, 100 * torch.finfo(torch.float64).eps)
        self._next = self._fresh()

    def __len__(self) -> int:
        return len(self._alpha)

    def step(self) -> None:
        """One product, one vector more.

        Raises:
            InputError: the product is not finite.
        """
        j = len(self)
        if j and self.remainder == 0:
            self.begin, self._next = j, self._fresh()
        self._grow(j + 1)
        self._basis[j] = self._next
        image = self._operator.matvec(self._next).to(torch.float64, copy=True)
        if not bool(torch.isfinite(image).all()):
            raise InputError("the operator gave NaN or infinite values")
        if self._keep_images:
            self._images[j] = image
        self._alpha.append(float(self._next @ image))
        # The large parts first, by the three-term recurrence: what the basis then takes is rounding, in one pass.
        image -= self._alpha[-1] * self._next
        if j:
            image -= self._beta[-1] * self._basis[j - 1]
        rest = self._orthogonal(image)
        norm = float(rest.norm())
        scale = max(map(abs, [*self._alpha, *self._beta]))
        self.remainder = norm if norm > self._noise * scale else 0.0
        self._next = rest / norm
        self._beta.append(self.remainder)

    def ritz(self, first: int = 0, end: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues, rising, and eigenvectors (columns) of the tridiagonal matrix from `first` to before `end`."""
        diagonal, off = np.array(self._alpha[first:end]), np.array(self._beta[first:end])
        values, vectors = eigh_tridiagonal(diagonal, off[:-1])
        return values, vectors  # pyright: ignore[reportReturnType]

    def vectors(self) -> tuple[Tensor, Tensor]:
        """The basis (m, p) in float64 and, where they are kept, its images (m, p) in the operator's dtype."""
        return self._basis[: len(self)], self._images[: len(self)]

    def _fresh(self) -> Tensor:
        generator = self._rng.child(self._chains).generator()
        self._chains += 1
        v = torch.randn(self._p, generator=generator, dtype=torch.float64).to(self._operator.device)
        v = self._orthogonal(v / v.norm())
        return v / v.norm()

    def _orthogonal(self, v: Tensor) -> Tensor:
        """Without its parts in the basis. A pass that takes much leaves the rounding of that: then once more."""
        basis = self._basis[: len(self)]
        for _ in range(3):
            before = float(v.norm())
            v = v - basis.T @ (basis @ v)
            if float(v.norm()) > _ENOUGH * before:
                break
        return v

    def _grow(self, rows: int) -> None:
        """Double the room where there is none for so many rows: the number needed is not known in advance."""
        if rows > len(self._basis):
            room = max(_FIRST_ROWS, 2 * len(self._basis))
            self._basis = _enlarged(self._basis, room)
            self._images = _enlarged(self._images, room) if self._keep_images else self._images


def _enlarged(rows: Tensor, count: int) -> Tensor:
    larger = rows.new_empty((count, rows.shape[1]))
    larger[: len(rows)] = rows
    return larger
