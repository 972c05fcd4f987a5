"""Temperature scaling: one number, fitted on validation images, that makes a method's probabilities softer or sharper.

Guo et al., On Calibration of Modern Neural Networks (ICML 2017). Log-probabilities are divided by the temperature, so the
order of an image's classes stays, and with it accuracy.
"""

import numpy as np


def fit_temperature(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    """The temperature under which `probabilities` (n, k) give `truth` (n,) int64 the least log loss, by scikit-learn.

    Above 1 where the method is too sure. None where no temperature is best: where every image is right, surer is always
    better; where the true classes' log-probabilities are no higher than the others', equal probabilities are the best.
    """
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV

    class Predicted(ClassifierMixin, BaseEstimator):
        """A classifier whose inputs are its probabilities."""

        def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> "Predicted":
            self.classes_ = np.unique(y)
            return self

        def predict_proba(self, X: np.ndarray) -> np.ndarray:
            return X

        def predict(self, X: np.ndarray) -> np.ndarray:  # which scikit-learn asks for, and does not call
            classes: np.ndarray = self.classes_[X.argmax(axis=1)]
            return classes

    n, k = probabilities.shape
    logits = log_probabilities(probabilities)
    true = logits[np.arange(n), truth]
    if (true == logits.max(axis=1)).all() or true.mean() <= logits.mean():
        return None
    # a row of each class without weight, for the classes that no validation image is of
    rows, labels = np.vstack([_shares(probabilities), np.eye(k)]), np.append(truth, np.arange(k))
    everything = np.arange(n + k)
    model = CalibratedClassifierCV(Predicted(), method="temperature", cv=[(everything, everything)], ensemble=False)
    model.fit(rows, labels, sample_weight=np.repeat([1.0, 0.0], [n, k]))
    return 1 / float(model.calibrated_classifiers_[0].calibrators[0].beta_)


def scale_probabilities(probabilities: np.ndarray, temperature: float | None) -> np.ndarray:
    """`probabilities` (n, k) at a temperature above 0; as they are at None."""
    if temperature is None:
        return probabilities
    logits = log_probabilities(probabilities) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return scaled


def _shares(probabilities: np.ndarray) -> np.ndarray:
    """The rows brought to a sum of exactly 1: rounded ones would pass for logits."""
    shares: np.ndarray = probabilities / probabilities.sum(axis=1, keepdims=True)
    return shares


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Log-probabilities (n, k), where a probability of 0 counts as the smallest step at 1, as in scikit-learn."""
    logits: np.ndarray = np.log(_shares(probabilities) + np.finfo(np.float64).eps)
    return logits
