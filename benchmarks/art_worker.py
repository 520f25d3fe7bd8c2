"""ART's side of ``benchmarks.against_art``. It runs in ART's own environment, in which undoor is not installed.

It reads jobs from standard input, one JSON object per line, and answers each with one line of JSON.
"""

import json
import sys
import time
import warnings

import numpy as np
from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense

warnings.simplefilter("ignore")


class PassThrough:
    """A classifier whose only layer is its input, so that the defenses get the features unchanged."""

    layer_names = ("features",)

    def __init__(self, nb_classes):
        self.nb_classes = nb_classes

    def get_activations(self, x, **_):
        """Return the input unchanged."""
        return x


def spectral_signatures(features, labels, expected):
    defense = SpectralSignatureDefense(
        PassThrough(labels.max() + 1), features, labels, expected_pp_poison=expected, eps_multiplier=1.5
    )
    begin = time.perf_counter()
    _, is_clean = defense.detect_poison()
    seconds = time.perf_counter() - begin
    score = np.zeros(len(labels))
    for label in np.unique(labels):  # the report has scores of flagged samples only
        score[labels == label] = defense.spectral_signature_scores(features[labels == label])[:, 0]
    return seconds, np.asarray(is_clean) == 0, score


def activation_clustering(features, labels, **settings):
    defense = ActivationDefence(PassThrough(labels.max() + 1), features, labels)
    begin = time.perf_counter()
    _, is_clean = defense.detect_poison(nb_clusters=2, nb_dims=10, **settings)
    seconds = time.perf_counter() - begin
    flagged = np.asarray(is_clean) == 0
    return seconds, flagged, flagged.astype(float)


def main():
    for line in sys.stdin:
        job = json.loads(line)
        arrays = np.load(job["features"])
        np.random.seed(job["seed"])  # noqa: NPY002 - ART draws from the global generator
        method = {"ss": spectral_signatures, "ac": activation_clustering}[job["method"]]
        try:
            seconds, flagged, score = method(arrays["features"], arrays["labels"], **job["settings"])
        except Exception as error:  # a defense that crashes is a result too
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:200]}), flush=True)
            continue
        np.savez(job["answer"], flagged=flagged, score=score)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
