"""Other ways to tell training from validation pictures than a folder's own. The test pictures always stay apart.

    published   as the folder says: its id workbooks, its Val folder, or, with neither, the first 80 per cent
    first80     LanGuideMedSeg's rule: the first 80 per cent of the table's rows, unshuffled
    patients    no patient on both sides: whole patients go to validation until it holds 20 per cent of the pictures.
                A picture whose name gives no patient is trained on, since nothing tells whose it is
    sources     20 per cent of each source go to validation, whole patients where names give them: for figures by source
                on pictures that were not trained on, where a folder's own validation has one source only (QaTa-COV19:
                half of train is `covid_N`, and no other split has any). Names of `covid_N` give no patient, so there
                one patient may have pictures on both sides, and nothing tells

Patients by name: `sub-S10644_…` (QaTa-COV19), `Morozov_study_0255_…` and `Jun_…_case7_…` (MosMedData+), `TCGA-XX-XXXX-…`
(MoNuSeg); a phantom is its own patient.
"""
from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

from .tables import DataError

RULES = {"published": "", "first80": "first 80 per cent of rows", "patients": "disjoint by patient",
         "sources": "a fifth of each source, by patient where names tell"}
TRAIN_SHARE = 0.8


def resplit(samples: list, rule: str) -> list:
    """Training and validation samples, in the order of their tables, told apart anew.

    Args:
        samples: of `find_samples`, of the splits train and val. rule: "first80", "patients" or "sources".
    Raises:
        DataError: "patients", where fewer than two are known.
    """
    if rule == "first80":
        first = int(TRAIN_SHARE * len(samples))
        return [replace(s, split="train" if i < first else "val") for i, s in enumerate(samples)]
    if rule == "sources":
        val = set()
        for source in sorted({s.source for s in samples}):
            members = Counter(patient_of(s) or s.name for s in samples if s.source == source)
            val |= {(source, member) for member in _held_out(members, (1 - TRAIN_SHARE) * members.total())}
        return [replace(s, split="val" if (s.source, patient_of(s) or s.name) in val else "train") for s in samples]
    patients = Counter(filter(None, map(patient_of, samples)))
    if len(patients) < 2:
        raise DataError(f"The names of these {len(samples)} pictures tell {len(patients)} patients apart, too few for the split rule "
                        f'"patients". Choose "published" or "first80".')
    val = _held_out(patients, min((1 - TRAIN_SHARE) * len(samples), patients.total() / 2))
    return [replace(s, split="val" if patient_of(s) in val else "train") for s in samples]


def _held_out(members: Counter, wanted: float) -> set:
    """Members, in an order that is not that of their names, until they have so many pictures; never all of them."""
    val, count = set(), 0
    for member in sorted(members, key=lambda m: hashlib.sha256(m.encode()).digest())[:-1]:
        if count >= wanted:
            break
        val.add(member)
        count += members[member]
    return val


def patient_of(sample) -> str | None:
    """Whose picture a sample is, as far as its name says."""
    return sample.subject or (sample.name if sample.source == "phantom" else None)
