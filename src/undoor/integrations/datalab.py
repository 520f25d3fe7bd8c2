"""Backdoors as an issue type of cleanlab's Datalab; importing this module registers it.

    from undoor.integrations import datalab  # registers "backdoor"
    lab.find_issues(issue_types={"backdoor": {"findings": findings}})

It needs the extra ``undoor[cleanlab]``.
"""

from typing import Any, ClassVar

import numpy as np
import pandas as pd

from undoor.errors import UndoorError
from undoor.findings.findings import Findings
from undoor.integrations.frame import issues

try:
    from cleanlab import Datalab
    from cleanlab.datalab.internal.issue_manager import IssueManager
    from cleanlab.datalab.internal.issue_manager_factory import register
except ImportError as error:
    raise UndoorError("cleanlab's Datalab is not installed; pip install 'undoor[cleanlab]'") from error


@register
class BackdoorIssueManager(IssueManager):  # type: ignore[misc] # cleanlab has no types
    """The findings of a training-set defense as an issue of Datalab.

    Datalab gives its issue managers the features and probabilities of the plain images. A defense also needs those of
    the filtered images. Therefore the defense runs first (``undoor.scan``, or any defense on an ``Evidence`` built from
    arrays), and Datalab is given its findings.
    """

    description: ClassVar[str] = (
        "Images that were planted in the training set so that a network trained on it\n"
        "\tobeys a trigger. The score is low if filtering the images changes the decisions\n"
        "\tof an image's cluster."
    )
    issue_name: ClassVar[str] = "backdoor"
    verbosity_levels: ClassVar[dict[int, list[str]]] = {0: ["verdict"], 1: ["classes_flagged"], 2: ["clusters"], 3: []}

    def __init__(self, datalab: Datalab, findings: Findings | None = None, **_: Any) -> None:
        super().__init__(datalab)
        self.findings = findings

    def find_issues(self, findings: Findings | None = None, **_: Any) -> None:
        """Take over the findings, which must be of the samples of this Datalab, in the same order."""
        findings = findings or self.findings
        if findings is None:
            raise UndoorError("a backdoor needs findings; give issue_types={'backdoor': {'findings': findings}}")
        self._require_same_samples(findings)
        frame = issues(findings)
        self.issues = frame[["is_backdoor_issue", self.issue_score_key]]
        self.summary = self.make_summary(score=np.mean(frame[self.issue_score_key].to_numpy()).item())
        self.info = self.collect_info(findings, frame)

    def collect_info(self, findings: Findings, frame: pd.DataFrame) -> dict[str, Any]:
        """Return the verdict and its reasons, which ``Datalab.get_info("backdoor")`` shows."""
        columns = ["class_name", "cluster", "size", "changed", "impurity", "flagged"]
        return {
            "verdict": findings.verdict,
            "classes_flagged": list(findings.classes_flagged),
            "clusters": findings.clusters[columns],
            "defense": findings.provenance.defense,
            "threshold": findings.threshold,
            "settings": dict(findings.provenance.settings),
            "id": frame["id"].to_numpy(),
            "given_label": frame["given_label"].to_numpy(),
            "predicted_label": frame["predicted_label"].to_numpy(),
            "num_backdoor_issues": int(findings.flagged.sum()),
        }

    def _require_same_samples(self, findings: Findings) -> None:
        lab = self.datalab
        if len(lab.data) != len(findings.samples):
            raise UndoorError(
                f"the findings are of {len(findings.samples)} samples, Datalab's data of {len(lab.data)}; "
                "give the findings of this very data"
            )
        if not lab.has_labels:
            return
        given = np.array(lab.class_names).astype(np.str_)[lab.labels]
        labels = findings.samples["label"].to_numpy()
        names = np.array(findings.class_names, dtype=np.str_)[labels]
        if not (np.array_equal(given, names) or np.array_equal(given, labels.astype(np.str_))):
            raise UndoorError("the labels of the findings are not Datalab's; give both the same data in the same order")
