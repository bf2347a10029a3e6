package org.espalier.torch.onnx;

/**
 * A value in the source of a module: the name of a tensor, or the name of a list of integers where it is a
 * shape or made of shapes, which the host computes with. What is missing of the two is made when it is asked
 * for.
 */
final class ScriptValue {
  private final int rank;
  private String tensor;
  private String list;

  private ScriptValue(String tensor, String list, int rank) {
    this.tensor = tensor;
    this.list = list;
    this.rank = rank;
  }

  /**
   * @param expression gives a tensor
   */
  static ScriptValue of(String expression) {
    return new ScriptValue(expression, null, -1);
  }

  /**
   * An int64 tensor of rank 0 or 1.
   *
   * @param expression gives its elements as a {@code List[int]}
   */
  static ScriptValue ofList(String expression, int rank) {
    return new ScriptValue(null, expression, rank);
  }

  /** The tensor's name; null where only the list is known. */
  String tensor() {
    return tensor;
  }

  void tensor(String name) {
    tensor = name;
  }

  /** The list's name; null where only the tensor is known. */
  String list() {
    return list;
  }

  void list(String name) {
    list = name;
  }

  /** The rank of the tensor that was a list first; -1 for others. */
  int rank() {
    return rank;
  }
}
