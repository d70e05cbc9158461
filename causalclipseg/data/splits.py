"""Other ways to tell training from validation pictures than a folder's own. The test pictures always stay apart.

    published   as the folder says: its id workbooks, its Val folder, or, with neither, the first 80 per cent
    first80     LanGuideMedSeg's rule: the first 80 per cent of the table's rows, unshuffled
    patients    no patient on both sides: whole patients go to validation until it holds 20 per cent of the pictures.
                A picture whose name gives no patient is trained on, since nothing tells whose it is

Patients by name: `sub-S10644_…` (QaTa-COV19), `Morozov_study_0255_…` and `Jun_…_case7_…` (MosMedData+), `TCGA-XX-XXXX-…`
(MoNuSeg); a phantom is its own patient.
"""
from __future__ import annotations

import hashlib
from dataclasses import replace

from .tables import DataError

RULES = {"published": "", "first80": "first 80 per cent of rows", "patients": "disjoint by patient"}
TRAIN_SHARE = 0.8


def resplit(samples: list, rule: str) -> list:
    """Training and validation samples, in the order of their tables, told apart anew.

    Args:
        samples: of `find_samples`, of the splits train and val. rule: "first80" or "patients".
    Raises:
        DataError: fewer than two patients are known.
    """
    if rule == "first80":
        first = int(TRAIN_SHARE * len(samples))
        return [replace(s, split="train" if i < first else "val") for i, s in enumerate(samples)]
    patients = {}
    for sample in samples:
        if patient := patient_of(sample):
            patients[patient] = patients.get(patient, 0) + 1
    if len(patients) < 2:
        raise DataError(f"The names of these {len(samples)} pictures tell {len(patients)} patients apart, too few for the split rule "
                        f'"patients". Choose "published" or "first80".')
    wanted = min((1 - TRAIN_SHARE) * len(samples), sum(patients.values()) / 2)
    val, count = set(), 0
    for patient in sorted(patients, key=lambda p: hashlib.sha256(p.encode()).digest())[:-1]:  # any order but the names'
        if count >= wanted:
            break
        val.add(patient)
        count += patients[patient]
    return [replace(s, split="val" if patient_of(s) in val else "train") for s in samples]


def patient_of(sample) -> str | None:
    """Whose picture a sample is, as far as its name says."""
    return sample.subject or (sample.name if sample.source == "phantom" else None)
