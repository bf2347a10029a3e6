"""The same mails by scikit-learn: partial_fit of SGDClassifier and MLPClassifier, measured on mails 1,001 to the last before it learns them."""
import json
import sys
import time

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier

KNOWN = 1000
rows = [json.loads(line) for line in open(sys.argv[1])]
x = np.array([row["features"] for row in rows], dtype=np.float64)
y = np.array([row["label"] for row in rows])
n = len(y)


def linear(rate):
    # In the order of the stream, as online learning has to.
    return SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=rate, shuffle=False)


def perceptron(rate):
    return MLPClassifier((64,), solver="sgd", alpha=0, learning_rate_init=rate, momentum=0, shuffle=False, random_state=1)


def scores(classifier, part):
    if isinstance(classifier, SGDClassifier):
        return classifier.decision_function(part)
    return classifier.predict_proba(part)[:, 1] - 0.5


def measure(name, make, batch, passes):
    classifier = make()
    score = np.zeros(n)
    for at in range(0, n, batch):
        if at > 0:
            score[at:at + batch] = scores(classifier, x[at:at + batch])
        classifier.partial_fit(x[at:at + batch], y[at:at + batch], classes=[0, 1])
    seconds = float("inf")
    for _ in range(passes):  # the fastest
        classifier = make()
        begin = time.perf_counter()
        for at in range(0, n, batch):
            classifier.partial_fit(x[at:at + batch], y[at:at + batch], classes=[0, 1])
        seconds = min(seconds, time.perf_counter() - begin)
    accuracy = np.mean((score[KNOWN:] > 0) == (y[KNOWN:] == 1))
    auc = roc_auc_score(y[KNOWN:], score[KNOWN:])
    print(f"{name:44} {accuracy:9.4f} {auc:8.4f} {n / seconds:14.0f}")


print(f"{'way':44} {'accuracy':>9} {'AUC':>8} {'examples/s':>14}")
for batch in (1, 32):
    for rate in (1, 3, 10):
        measure(f"partial_fit, batch {batch}, rate {rate}", lambda: linear(rate), batch, 3)
    for rate in (0.1, 0.3, 1):
        measure(f"perceptron of 64, batch {batch}, rate {rate}", lambda: perceptron(rate), batch, 2)
