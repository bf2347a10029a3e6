package org.espalier.compress.onnx;

import java.util.HashMap;
import java.util.Map;

/**
 * Disjoint sets of the values of a graph, which can be joined (union-find). A value that was never joined is a set of
 * its own.
 */
final class ValueSets {
  /** Another value of the same set, nearer to its root. */
  private final Map<String, String> parents = new HashMap<>();

  /** The value that stands for the set of a value. */
  String root(String value) {
    String root = value;
    while (parents.containsKey(root)) {
      root = parents.get(root);
    }
    for (String v = value; !v.equals(root); ) {
      v = parents.put(v, root);
    }
    return root;
  }

  /** Joins two sets; the root of the first stays. */
  void join(String first, String second) {
    String root = root(first);
    String other = root(second);
    if (!root.equals(other)) {
      parents.put(other, root);
    }
  }
}
