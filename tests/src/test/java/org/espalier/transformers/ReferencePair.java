package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.UnaryOperator;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.cli.SmallLanguage;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.torch.Libtorch;
import org.espalier.torch.Parameter;
import org.espalier.torch.onnx.OnnxGraph;
import org.espalier.torch.onnx.OnnxRuntime;
import org.espalier.transformers.TransformersModel.Part;

/** A model of an encoder and a decoder in plain loops over doubles, and what the graphs of both must give. */
abstract class ReferencePair {
  static final int WORDS = SmallLanguage.VOCABULARY;
  static final int HIDDEN = 48;
  static final int LAYERS = 2;
  static final int ANSWERING_LAYERS = 3;

  /** The second is padded behind its end. */
  static final int[][] TEXTS = {{3, 17, 0, 29, 8, 8, 21, 4, 11}, {5, 6, 7}};

  private static final int[][] ANSWERS = {{40, 3, 9, 9, 30, 12, 1}, {40, 20, 5, 14, 2, 2, 8}};

  /** In what parts an answer is read: how many tokens each has. */
  private static final int[][] STEPS = {{7}, {1, 1, 1, 1, 1, 1, 1}, {3, 1, 3}};

  SafetensorsDtype dtype = SafetensorsDtype.F32;

  /** Which tensors follow from the configuration, and are trained too. */
  Set<String> computed = Set.of();

  /** A matrix that is added as a whole, and no weight of a product or a look-up. */
  String added = "";

  abstract String config();

  abstract SmallCheckpoint weights();

  /** How many heads the decoder has. */
  abstract int heads();

  /** Of these heads. */
  abstract int width();

  /** The encoder's states of a text, or of what else is read. */
  abstract double[][] read(SmallCheckpoint w, int which);

  /** The logits for each token of an answer. */
  abstract double[][] answered(SmallCheckpoint w, double[][] read, int[] tokens);

  /** What the encoder takes. */
  Map<String, Tensor> inputs() {
    Map<String, Tensor> inputs = new HashMap<>();
    int longest = TEXTS[0].length;
    long[] ids = new long[TEXTS.length * longest];
    long[] mask = new long[ids.length];
    for (int i = 0; i < TEXTS.length; i++) {
      for (int t = 0; t < TEXTS[i].length; t++) {
        ids[i * longest + t] = TEXTS[i][t];
        mask[i * longest + t] = 1;
      }
    }
    inputs.put("input_ids", longs(ids, TEXTS.length, longest));
    inputs.put("attention_mask", longs(mask, TEXTS.length, longest));
    return inputs;
  }

  private static Tensor longs(long[] values, long... shape) {
    return torch.tensor(values).reshape(shape);
  }

  /** What runs a model. */
  private interface Run {
    Map<String, Tensor> of(Map<String, Tensor> inputs) throws Exception;
  }

  /**
   * ONNX Runtime and libtorch give what the loops do of padded texts, and of answers at once and step by step; weights are
   * found and learn.
   */
  final void compare(Path folder) throws Exception {
    Libtorch.load();
    SmallCheckpoint weights = weights();
    weights.write(folder, config());
    OnnxModel encoder = part(folder, Part.ENCODER);
    OnnxModel decoder = part(folder, Part.DECODER);
    Set<String> found = new TreeSet<>();
    for (OnnxModel model : List.of(encoder, decoder)) {
      OnnxWeights.of(model).forEach(weight -> found.add(weight.name()));
    }
    Set<String> matrices = weights.matrices();
    matrices.remove(added);
    assertTrue(found.containsAll(matrices), found + " of " + matrices);
    Set<String> learning = new TreeSet<>();
    try (PointerScope scope = new PointerScope();
        OnnxGraph reads = new OnnxGraph(widened(encoder));
        OnnxGraph answers = new OnnxGraph(widened(decoder))) {
      Map<String, Tensor> states = OnnxRuntime.run(encoder, inputs());
      readsRight(weights, states);
      answersRight(weights, states, inputs -> OnnxRuntime.run(decoder, inputs));
      states = reads.forward(inputs());
      readsRight(weights, states);
      learns(reads, states.values(), learning);
      Map<String, Tensor> all = begun(states);
      all.put("input_ids", ids(0, ANSWERS[0].length));
      all.replaceAll((name, value) -> value.detach());
      answersRight(weights, states, answers::forward);
      learns(answers, answers.forward(all).values(), learning);
    }
    Set<String> expected = weights.names();
    expected.addAll(computed);
    assertEquals(expected, learning);
    HostileConfigs.areRefusedOrRead(folder, "config.json", Part.ENCODER);
    HostileConfigs.areRefusedOrRead(folder, "config.json", Part.DECODER);
  }

  private static OnnxModel widened(OnnxModel model) {
    OnnxModel widened = model.copy();
    HalfPrecision.widen(widened);
    return widened;
  }

  private static OnnxModel part(Path folder, Part part) {
    List<String> notes = new ArrayList<>();
    OnnxModel model = TransformersModel.read(folder, part, notes::add);
    assertEquals(1, notes.size(), notes.toString());
    String of = "the " + part.name().toLowerCase() + " part of ";
    assertTrue(notes.get(0).contains(of), notes.get(0));
    return model;
  }

  private void readsRight(SmallCheckpoint weights, Map<String, Tensor> outputs) {
    assertEquals(1 + 2 * ANSWERING_LAYERS, outputs.size());
    for (int i = 0; i < TEXTS.length; i++) {
      double[][] expected = read(weights, i);
      Tensor states = outputs.get("last_hidden_state").select(0, i);
      for (int t = 0; t < expected.length; t++) {
        close(expected[t], states.select(0, t), "text " + i + " token " + t);
      }
    }
  }

  /** What the decoder takes when answers begin, but for their tokens. */
  private Map<String, Tensor> begun(Map<String, Tensor> states) {
    Map<String, Tensor> inputs = new HashMap<>();
    if (inputs().containsKey("attention_mask")) {
      inputs.put("encoder_attention_mask", inputs().get("attention_mask"));
    }
    Tensor none =
        torch.zeros(
            new long[] {TEXTS.length, heads(), 0, width()}, new TensorOptions(ScalarType.Float));
    for (int n = 0; n < ANSWERING_LAYERS; n++) {
      for (String what : List.of(".key", ".value")) {
        inputs.put("past_key_values." + n + ".decoder" + what, none);
        Tensor read = states.get("present." + n + ".encoder" + what);
        inputs.put("past_key_values." + n + ".encoder" + what, read);
      }
    }
    return inputs;
  }

  private static Tensor ids(int from, int to) {
    long[] ids = new long[ANSWERS.length * (to - from)];
    for (int i = 0; i < ids.length; i++) {
      ids[i] = ANSWERS[i / (to - from)][from + i % (to - from)];
    }
    return longs(ids, ANSWERS.length, to - from);
  }

  private void answersRight(SmallCheckpoint weights, Map<String, Tensor> states, Run run)
      throws Exception {
    double[][][] expected = new double[TEXTS.length][][];
    for (int i = 0; i < TEXTS.length; i++) {
      expected[i] = answered(weights, read(weights, i), ANSWERS[i]);
    }
    for (int[] steps : STEPS) {
      Map<String, Tensor> inputs = begun(states);
      int from = 0;
      for (int step : steps) {
        inputs.put("input_ids", ids(from, from + step));
        Map<String, Tensor> outputs = run.of(inputs);
        assertEquals(1 + 2 * ANSWERING_LAYERS, outputs.size());
        for (int at = 0; at < TEXTS.length * step; at++) {
          int i = at / step;
          int t = at % step;
          String where = "answer " + i + " token " + (from + t) + " by " + Arrays.toString(steps);
          Tensor logits = outputs.get("logits").select(0, i).select(0, t);
          close(expected[i][from + t], logits, where);
        }
        for (int n = 0; n < ANSWERING_LAYERS; n++) {
          for (String what : List.of(".decoder.key", ".decoder.value")) {
            inputs.put("past_key_values." + n + what, outputs.get("present." + n + what));
          }
        }
        from += step;
      }
    }
  }

  /** Each tensor is a parameter, and what comes out depends on it. */
  private static void learns(OnnxGraph graph, Iterable<Tensor> outputs, Set<String> learning) {
    Tensor sum = null;
    for (Tensor output : outputs) {
      Tensor squares = output.mul(output).mean();
      sum = sum == null ? squares : sum.add(squares);
    }
    sum.backward();
    for (Parameter p : graph.parameters()) {
      double size = p.tensor().grad().abs().sum().item_double();
      assertTrue(size > 0 || p.name().endsWith(".bias"), p.name());
      learning.add(p.name());
    }
  }

  private static void close(double[] expected, Tensor actual, String where) {
    float[] row = new float[expected.length];
    assertEquals(row.length, actual.numel(), where);
    new FloatPointer(actual.contiguous().data_ptr()).get(row);
    for (int i = 0; i < row.length; i++) {
      assertEquals(expected[i], row[i], 2e-4 * Math.max(1, Math.abs(expected[i])), where);
    }
  }

  static double[][] each(double[][] rows, SmallDecoder.Row f) {
    return SmallDecoder.each(rows, f);
  }

  /** What a block makes is added to what it took, and normed before or behind. */
  static double[][] block(
      double[][] x, boolean first, SmallDecoder.Row norm, UnaryOperator<double[][]> made) {
    double[][] of = made.apply(first ? each(x, norm) : x);
    double[][] sum = new double[x.length][];
    for (int t = 0; t < x.length; t++) {
      sum[t] = SmallCheckpoint.plus(x[t], of[t]);
    }
    return first ? sum : each(sum, norm);
  }
}
