"""The same mails by scikit-learn: SGDClassifier.partial_fit, measured on mails 1,001 to the last before it learns them."""
import json
import sys
import time

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import roc_auc_score

KNOWN = 1000
rows = [json.loads(line) for line in open(sys.argv[1])]
x = np.array([row["features"] for row in rows], dtype=np.float64)
y = np.array([row["label"] for row in rows])
n = len(y)


def model(rate):
    # In the order of the stream, as online learning has to.
    return SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=rate, shuffle=False)


print(f"{'way':44} {'accuracy':>9} {'AUC':>8} {'examples/s':>14}")
for batch, rates in ((1, (1, 3, 10)), (32, (1, 3, 10))):
    for rate in rates:
        classifier = model(rate)
        score = np.zeros(n)
        for at in range(0, n, batch):
            if at > 0:
                score[at:at + batch] = classifier.decision_function(x[at:at + batch])
            classifier.partial_fit(x[at:at + batch], y[at:at + batch], classes=[0, 1])
        seconds = float("inf")
        for _ in range(3):  # the fastest
            classifier = model(rate)
            begin = time.perf_counter()
            for at in range(0, n, batch):
                classifier.partial_fit(x[at:at + batch], y[at:at + batch], classes=[0, 1])
            seconds = min(seconds, time.perf_counter() - begin)
        accuracy = np.mean((score[KNOWN:] > 0) == (y[KNOWN:] == 1))
        auc = roc_auc_score(y[KNOWN:], score[KNOWN:])
        name = f"partial_fit, batch {batch}, rate {rate}"
        print(f"{name:44} {accuracy:9.4f} {auc:8.4f} {n / seconds:14.0f}")
