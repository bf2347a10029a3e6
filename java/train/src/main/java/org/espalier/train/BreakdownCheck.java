package org.espalier.train;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;
import org.espalier.format.onnx.ClassifierOutput;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.ExampleRows;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.onnx.OnnxGraph;

/**
 * Checks whether examples are the cause of a training that broke down. Losses and gradients are summed in float32, in
 * which squares of large numbers are infinite, and a step on an example of large values leaves weights with which every
 * other example breaks down too. So the model as it was before the first stage runs on the batch at hand and on all
 * training examples of large values. Where weights are multiplied with the values of examples directly, far smaller
 * values do the same, as gradients grow with their squares.
 */
final class BreakdownCheck {
  /** Several hundred squares of it can be summed in float32. */
  static final double LARGEST = 1e18;

  /** No learning rate in use suits what is multiplied with values beyond; those of a model are about 1. */
  private static final double UNSCALED = 1e4;

  private static final int BATCH = 32;

  private final Compression.Job job;
  private final TrainedForm form;

  /**
   * @param form of the job's model
   */
  BreakdownCheck(Compression.Job job, TrainedForm form) {
    this.job = job;
    this.form = form;
  }

  /**
   * Looks at the examples.
   *
   * @param indices of the batch whose loss or gradient is not finite
   * @throws InputException where the model's output for one is not finite or beyond {@link #LARGEST}, or weights are
   *     multiplied with values of examples that are beyond {@link #UNSCALED}
   */
  void run(int[] indices) {
    OnnxModel trained = form.floats();
    checkOutputs(trained, indices);
    if (job.training() instanceof Examples.Labelled rows) {
      checkScale(trained, rows);
    }
  }

  private void checkOutputs(OnnxModel trained, int[] indices) {
    ClassifierOutput output = ClassifierOutput.of(trained);
    try (OnnxGraph model =
        OnnxGraph.frozen(job.opened(PlanCheck.withLogits(trained, output)), TorchDevice.CPU)) {
      Set<String> outputs = new LinkedHashSet<>(List.of(output.output()));
      if (output.logits() != null) {
        outputs.add(output.logits());
      }
      check(model, outputs, indices);
      if (job.training() instanceof Examples.Labelled rows) {
        int[] large =
            IntStream.range(0, rows.size())
                .filter(i -> largest(rows, i).magnitude() > LARGEST)
                .toArray();
        for (int i = 0; i < large.length; i += BATCH) {
          check(model, outputs, Arrays.copyOfRange(large, i, Math.min(i + BATCH, large.length)));
        }
      }
    }
  }

  /** Checks whether large values of examples are multiplied with weights directly, or are scaled first. */
  private void checkScale(OnnxModel trained, Examples.Labelled rows) {
    double[] sizes =
        IntStream.range(0, rows.size()).mapToDouble(i -> largest(rows, i).magnitude()).toArray();
    int[] largest =
        IntStream.range(0, sizes.length)
            .boxed()
            .sorted(Comparator.comparingDouble(i -> -sizes[i]))
            .limit(BATCH)
            .mapToInt(Integer::intValue)
            .toArray();
    if (sizes[largest[0]] <= UNSCALED) {
      return;
    }
    OnnxModel opened = job.opened(trained);
    Map<String, String> weights = activations(opened);
    Map<String, Tensor> values = new HashMap<>();
    try (OnnxGraph model = OnnxGraph.frozen(opened.withOutputs(weights.keySet()), TorchDevice.CPU);
        PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Batch batch = Batch.of(rows, largest, model.inputNames());
      values.putAll(batch.inputs());
      values.putAll(model.forward(batch.inputs()));
      for (Map.Entry<String, String> read : weights.entrySet()) {
        float most = values.get(read.getKey()).abs().max().item_float();
        if (most > UNSCALED) {
          throw new InputException(
              job.model().name()
                  + ": training broke down, and examples"
                  + held(largest)
                  + ", which the weight "
                  + read.getValue()
                  + " is multiplied with as "
                  + most
                  + "; steps grow with the square of that, and about 1 is right: normalise the"
                  + " inputs, in the model where it was made for such values (less the mean of each"
                  + " feature, divided by its deviation), or take a learning-rate that is as much"
                  + " lower");
        }
      }
    }
  }

  /** The floats that weights are multiplied with, and the first weight that is, in the order of the graph. */
  private static Map<String, String> activations(OnnxModel model) {
    Map<String, NodeProto> producers = model.producers();
    Map<String, String> activations = new LinkedHashMap<>();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      for (OnnxWeight.Use use : weight.uses()) {
        NodeProto node = producers.get(use.node());
        if (node != null && use.kind() != OnnxWeight.Kind.EMBEDDING) {
          activations.putIfAbsent(node.getInput(use.input() == 0 ? 1 : 0), weight.name());
        }
      }
    }
    return activations;
  }

  private void check(OnnxGraph model, Set<String> outputs, int[] indices) {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Batch batch = Batch.of(job.training(), indices, model.inputNames());
      Map<String, Tensor> values = model.forward(batch.inputs());
      for (String output : outputs) {
        float largest = values.get(output).abs().max().item_float();
        if (!(largest <= LARGEST)) {
          throw new InputException(
              job.model().name()
                  + ": the value "
                  + output
                  + " is "
                  + (Float.isNaN(largest) ? "NaN" : "as large as " + largest)
                  + " for one of the training examples"
                  + (held(indices).isEmpty() ? "" : ", which" + held(indices))
                  + "; training cannot sum squares of values beyond "
                  + LARGEST
                  + ", and about 1 is right");
        }
      }
    }
  }

  /** The largest value of some examples, to find them by. */
  private String held(int[] indices) {
    if (!(job.training() instanceof Examples.Labelled rows)) {
      return "";
    }
    Held held =
        Arrays.stream(indices)
            .mapToObj(i -> largest(rows, i))
            .reduce((a, b) -> b.magnitude() > a.magnitude() ? b : a)
            .orElseThrow();
    return held.value == 0
        ? ""
        : " hold up to "
            + held.text()
            + " in "
            + (held.input.name() == null ? ExampleRows.INPUTS : held.input.name());
  }

  /** A value of an example. */
  private record Held(Examples.Input input, double value) {
    double magnitude() {
      return Math.abs(value);
    }

    /** The value in the fewest digits that tell it from others of its type. */
    String text() {
      return input.type() == SafetensorsDtype.F64
          ? Double.toString(value)
          : Float.toString((float) value);
    }
  }

  private static Held largest(Examples.Labelled rows, int example) {
    return rows.inputs().stream()
        .map(input -> new Held(input, input.largest(example)))
        .reduce((a, b) -> b.magnitude() > a.magnitude() ? b : a)
        .orElseThrow();
  }
}
