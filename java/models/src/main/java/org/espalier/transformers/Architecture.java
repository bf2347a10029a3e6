package org.espalier.transformers;

import java.util.List;

/** How the models of a kind compute. */
@FunctionalInterface
interface Architecture {
  /**
   * Writes the graph of a model.
   *
   * @param classes what {@code architectures} names: the model's class with its head, as {@code BertForTokenClassification}
   * @throws org.espalier.InputException if the configuration asks for what no graph here computes, or a tensor is missing or
   *     of another shape
   */
  void write(Configuration config, GraphWriter graph, List<String> classes);
}
