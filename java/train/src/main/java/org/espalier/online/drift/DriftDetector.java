package org.espalier.online.drift;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;

/** Watches a stream of errors in [0, 1] for a rise of its mean. Not for several threads. */
interface DriftDetector {
  /** Adds an error; true where the mean has risen. */
  boolean add(double error);

  /** What it knows, in words, for a log. */
  String evidence();

  void save(DataOutput out) throws IOException;

  void load(DataInput in) throws IOException;
}
