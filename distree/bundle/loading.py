"""Finding, verifying and reading bundles: every file by its SHA-256.

A bundle's *revision* is the first 12 hexadecimal digits of the SHA-256 of its manifest. The manifest names the
SHA-256 of every other file, so two boards with the same revision hold the same model, down to the last bit.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from distree import strict_yaml
from distree.bundle.checks import check_manifest
from distree.bundle.manifest import MANIFEST, BranchSpec, Manifest, StageSpec
from distree.bundle.parameters import numbered, parameter_problems, read_arrays
from distree.criteria import problem
from distree.criteria.base import CriterionParameters
from distree.errors import BUILD_AGAIN, CHECK_PATH, COPY_AGAIN, BundleError, ConfigError, ConfigFileError
from distree.printable import quoted
from distree.record import record
from distree.regular_files import read_regular

MAX_SEGMENT_BYTES = 64 << 20


@record
class Bundle:
    """A manifest with its place on disk and its revision."""

    path: Path
    revision: str
    manifest: Manifest

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.manifest.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, by class id."""
        return self.manifest.labels

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """The stages, from 0."""
        return self.manifest.stages

    @property
    def criterion(self) -> str:
        """The criterion for which the default thresholds were calibrated."""
        return self.manifest.exits.criterion

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The calibrated default thresholds, one per exit but the last."""
        return self.manifest.exits.thresholds

    @property
    def branch_counts(self) -> tuple[int, ...]:
        """The number of branches of every stage, 0 for a plain one."""
        return tuple(len(stage.branches) for stage in self.stages)

    @property
    def wide_groups(self) -> list[list[int]]:
        """The numbers of the wide stages, those in a row together."""
        groups: list[list[int]] = []
        for k, count in enumerate(self.branch_counts):
            if count and groups and groups[-1][-1] == k - 1:
                groups[-1].append(k)
            elif count:
                groups.append([k])
        return groups

    @property
    def is_wide(self) -> bool:
        """Whether any stage is wide."""
        return any(self.branch_counts)

    def branch(self, k: int, branch: int | None) -> BranchSpec:
        """Return what the manifest says of a branch of wide stage `k`; BundleError if it has no such branch."""
        branches = self.stages[k].branches
        if not branches:
            raise BundleError(f"bundle {self.name}: stage {k} is not wide and has no branches", "name no branch")
        if branch is None or not 0 <= branch < len(branches):
            what = f"no branch of stage {k} was named" if branch is None else f"stage {k} has no branch {branch}"
            raise BundleError(f"bundle {self.name}: {what}", f"name one from 0 to {len(branches) - 1}")
        return branches[branch]

    def segment(self, k: int) -> bytes:
        """Read the segment of stage `k`, the fusion head of a wide one; BundleError if it is missing or was changed."""
        spec = self.stages[k]
        return read_verified(self.path / spec.segment, spec.sha256)

    def branch_segment(self, k: int, branch: int | None) -> bytes:
        """Read the segment of a branch of wide stage `k`; BundleError as for `segment` and `branch`."""
        spec = self.branch(k, branch)
        return read_verified(self.path / spec.segment, spec.sha256)

    def criterion_parameters(self) -> CriterionParameters:
        """Read what the criteria have learned or measured; `CriterionParameters()` where the bundle has no such file.

        The file holds float32 arrays: `class_means0`, `class_means1`, … (classes, values), one per branch of the
        first wide stage, and `gate0`, `gate1`, … (weights and bias,), one per exit, or per exit but the last; either
        may be left out. Raises BundleError where it is missing, was changed, or holds anything else.
        """
        spec = self.manifest.exits.parameters
        if spec is None:
            return CriterionParameters()
        path = self.path / spec.file
        arrays = read_arrays(path, read_verified(path, spec.sha256))
        for fault in parameter_problems(arrays, self.stages, len(self.labels)):
            raise BundleError(f"{path}: {fault}", BUILD_AGAIN)
        means = [of_branch.tolist() for of_branch in numbered(arrays, "class_means")]
        return CriterionParameters(
            class_means=tuple(tuple(map(tuple, of_class)) for of_class in zip(*means, strict=True)),
            gate=tuple(tuple(weights.tolist()) for weights in numbered(arrays, "gate")),
        )

    def check_criterion(self, criterion: str) -> None:
        """Raise BundleError unless the exits can be decided by this criterion; some need learned parameters."""
        why = problem(
            criterion, self.criterion_parameters(), self.is_wide, exits=len(self.stages), classes=len(self.labels)
        )
        if why is not None:
            raise BundleError(*why.at(f"bundle {self.name}"))

    def verify(self, stages: Iterable[int] | None = None, *, branch: int | None = None, fuse: bool = False) -> None:
        """Verify the golden vectors, the criteria's parameters, and all segments, or only those of one board.

        A board names the `stages` that it serves, the `branch` that it runs of the wide ones, and whether it fuses
        (`fuse`, for the fusion heads of all wide stages), as it does for its runtime.
        """
        golden, parameters = self.manifest.golden, self.manifest.exits.parameters
        read_verified(self.path / golden.file, golden.sha256)
        if parameters is not None:
            read_verified(self.path / parameters.file, parameters.sha256)
        for spec in self.held(stages, branch, fuse):
            read_verified(self.path / spec.segment, spec.sha256)

    def held(
        self, stages: Iterable[int] | None, branch: int | None = None, fuse: bool = False
    ) -> Iterator[StageSpec | BranchSpec]:
        """Give what a board holds of this bundle, or with `stages` None all segments; arguments as for `verify`."""
        if stages is None:
            yield from self.stages
            yield from itertools.chain.from_iterable(stage.branches for stage in self.stages)
            return
        for k in stages:
            yield self.branch(k, branch) if self.stages[k].branches else self.stages[k]
        if fuse:
            yield from (stage for stage in self.stages if stage.branches)


def read_verified(path: Path, sha256: str) -> bytes:
    """Read a file of a bundle; BundleError if it is missing, too long or not what the manifest says."""
    try:
        content = read_regular(path, MAX_SEGMENT_BYTES)
    except OSError as error:
        remedy = BUILD_AGAIN if error.errno == errno.EFBIG else COPY_AGAIN
        raise BundleError(f"{path}: {error.strerror}", remedy) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BundleError(
            f"{path}: its SHA-256 differs from the manifest's, so the file is damaged or of another revision",
            COPY_AGAIN,
        )
    return content


def find_bundle(name_or_path: str | Path) -> Path:
    """Return the folder of a bundle: a path that holds a manifest, or the name of one of `known_bundles`."""
    path = Path(name_or_path)
    if (path / MANIFEST).is_file():
        return path
    named = [found for found in known_bundles() if found.name == str(name_or_path)]
    if named:
        return named[0]
    known = ", ".join(sorted(found.name for found in known_bundles()))
    raise BundleError(
        f"bundle {quoted(str(name_or_path))} not found: neither a folder with a {MANIFEST} nor a known bundle "
        f"({known or 'the model zoo is not installed'})",
        "correct the name, or give the path of the folder",
    )


def bundle_of(folder: Path, name: str, own: Path | None = None) -> str:
    """Return the path of what `bundle: name` in a file in `folder` means: a folder seen from there, or a known bundle.

    own: where bundles of the user are, see `known_bundles`. What is neither comes back as if it were beside the file;
    loading it says what is wrong.
    """
    beside = folder / name
    if (beside / MANIFEST).is_file():
        return str(beside)
    return str(next((found for found in known_bundles(own) if found.name == name), beside))


def known_bundles(own: Path | None = None) -> list[Path]:
    """Return the folders of the bundles that go by a name: those of the model zoo, then those in `own`.

    own: a folder of bundles, `user_folder` if it is not given.
    """
    folders = [folder for folder in (zoo_folder(), own or user_folder()) if folder is not None]
    return [found.parent for folder in folders for found in sorted(folder.glob(f"*/{MANIFEST}"))]


def user_folder() -> Path | None:
    """Return where a user's own bundles are: `distree/bundles` in $XDG_DATA_HOME, which is ~/.local/share if unset.

    None for a user without a home folder.
    """
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError:
            return None
    return data / "distree" / "bundles"


def zoo_folder() -> Path | None:
    """Return the folder of the shipped bundles, without importing the model zoo; None where it is not installed."""
    spec = importlib.util.find_spec("model_zoo")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "bundles"


def load_bundle(
    name_or_path: str | Path, *, verify: Iterable[int] | None = None, branch: int | None = None, fuse: bool = False
) -> Bundle:
    """Load a bundle and verify all its files, or those that a board needs for the stages in `verify`.

    `branch` and `fuse` are as for `Bundle.verify`. Raises BundleError: not found, an inconsistent manifest, a
    missing or changed file.
    """
    path = find_bundle(name_or_path)
    try:
        content = read_regular(path / MANIFEST, strict_yaml.MAX_BYTES)
        manifest = strict_yaml.load_bytes(content, path / MANIFEST, Manifest)
        check_manifest(manifest, path / MANIFEST)
    except ConfigFileError as error:
        first, *others = error.problems
        raise BundleError(f"{first.what} (and {len(others):,} more mistakes)", first.remedy) from None
    except ConfigError as error:
        raise BundleError(*error.problem) from None
    except OSError as error:
        raise BundleError(f"{path / MANIFEST}: {error.strerror or error}", CHECK_PATH) from None
    bundle = Bundle(path=path, revision=hashlib.sha256(content).hexdigest()[:12], manifest=manifest)
    bundle.verify(verify, branch=branch, fuse=fuse)
    bundle.check_criterion(bundle.criterion)
    return bundle
