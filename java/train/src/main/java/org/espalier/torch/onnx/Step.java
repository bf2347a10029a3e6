package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.Arrays;
import java.util.function.IntFunction;
import java.util.function.UnaryOperator;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;

/** A node ready to run. */
final class Step {
  private final Frame frame;
  private final Operator operator;
  private final Kernel kernel;
  private final Inputs inputs;
  private final int[] sources;
  private final int[] targets;
  private final String where;

  private final NodeProto proto;
  private final long opset;

  /** The name of the node's first output, which identifies it. */
  private final String identity;

  /** The slots that the node reads, those of graphs inside it included. */
  private final int[] reads;

  /** For inputs 0 and 1; null where there is nothing to do. */
  private UnaryOperator<Tensor>[] transforms;

  /** For output 0; null where there is nothing to do. */
  private UnaryOperator<Tensor> resultTransform;

  /** Takes what this looks up in a table; null where there is nothing to do. */
  private LookUps lookUps;

  private String table;

  /** Which of the inputs 0 and 1 are activations: neither constants nor made of parameters only. */
  private final boolean[] activations;

  Step(
      Frame frame,
      Operator operator,
      Kernel kernel,
      int[] sources,
      int[] targets,
      int[] reads,
      String where,
      NodeProto proto,
      long opset,
      String identity,
      boolean[] activations) {
    this.frame = frame;
    this.operator = operator;
    this.kernel = kernel;
    this.sources = sources;
    this.targets = targets;
    this.reads = reads;
    this.where = where;
    this.proto = proto;
    this.opset = opset;
    this.identity = identity;
    this.activations = activations;
    this.inputs = new Inputs(frame, sources, operator);
  }

  Operator operator() {
    return operator;
  }

  int[] reads() {
    return reads;
  }

  int[] targets() {
    return targets;
  }

  /** The slots of the inputs, -1 where one is absent. */
  int[] sources() {
    return sources;
  }

  /** The name of an input. */
  String input(int i) {
    return proto.getInput(i);
  }

  /**
   * The node once more, for another reader of its attributes.
   *
   * @param constants the integers of an input that is constant, null for other inputs
   */
  Node node(IntFunction<long[]> constants) {
    return new Node(proto, opset, where, constants);
  }

  String identity() {
    return identity;
  }

  boolean takesActivation(int input) {
    return operator.product() && input < activations.length && activations[input];
  }

  @SuppressWarnings("unchecked")
  void transform(UnaryOperator<Tensor> first, UnaryOperator<Tensor> second) {
    transforms = first == null && second == null ? null : new UnaryOperator[] {first, second};
  }

  void transformResult(UnaryOperator<Tensor> transform) {
    resultTransform = transform;
  }

  /**
   * Gives what it looks up to somebody.
   *
   * @param name of the table
   */
  void lookUp(LookUps receiver, String name) {
    lookUps = receiver;
    table = name;
  }

  /** Runs the node; the frame then holds its outputs, which {@link Frame#release} frees. */
  void run() {
    // What the kernel makes on the way is freed here, its results are kept.
    try (PointerScope scope = new PointerScope()) {
      if (transforms != null) {
        transformInputs();
      }
      Tensor[] results = kernel.apply(inputs);
      if (lookUps != null) {
        lookUps.add(table, inputs, results[0]);
      }
      if (resultTransform != null) {
        results[0] = resultTransform.apply(results[0]);
      }
      for (int i = 0; i < targets.length; i++) {
        if (targets[i] >= 0) {
          if (i >= results.length || results[i] == null) {
            throw new InputException("output " + i + " is not computed");
          }
          results[i].retainReference();
          frame.set(targets[i], results[i]);
        }
      }
    } catch (IllegalStateException e) {
      throw e;
    } catch (RuntimeException e) {
      throw failure(e);
    } catch (OutOfMemoryError e) { // of one array, as long as the model says
      throw failure(e);
    } finally {
      if (transforms != null) {
        inputs.clearReplaced();
      }
    }
  }

  private void transformInputs() {
    for (int i = 0; i < transforms.length; i++) {
      if (transforms[i] != null) {
        inputs.replace(i, transforms[i].apply(inputs.get(i)));
      }
    }
  }

  private InputException failure(Throwable e) {
    if (e instanceof InputException && e.getMessage().startsWith(where)) {
      return (InputException) e;
    }
    StringBuilder shapes = new StringBuilder();
    for (int slot : sources) {
      Tensor t = slot < 0 ? null : frame.get(slot);
      shapes.append(shapes.length() == 0 ? "" : ", ");
      shapes.append(
          t == null || t.isNull() ? "-" : ElementTypes.of(t) + Arrays.toString(t.shape()));
    }
    // Operators index shapes with what a model says of axes; what Java says of it names arrays of
    // ours.
    String message =
        e instanceof IndexOutOfBoundsException
            ? "an axis or a number of values does not fit its inputs"
            : e instanceof ArithmeticException
                ? "a number among its inputs or attributes is too large"
                : e instanceof OutOfMemoryError
                    ? "it takes more memory than this JVM has (-Xmx)"
                    : String.valueOf(e.getMessage());
    int end = message.indexOf('\n');
    return new InputException(
        where + " failed on (" + shapes + "): " + (end < 0 ? message : message.substring(0, end)),
        e);
  }
}
