package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.UnaryOperator;
import java.util.stream.Collectors;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.cli.SmallLanguage;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.torch.Libtorch;
import org.espalier.torch.Parameter;
import org.espalier.torch.onnx.OnnxGraph;
import org.espalier.torch.onnx.OnnxRuntime;

/** A language model in plain loops over doubles, and what its graph must give. */
abstract class ReferenceDecoder {
  static final int WORDS = SmallLanguage.VOCABULARY;
  static final int LAYERS = 3;

  /** The second and the third are padded behind their end. */
  private static final int[][] TEXTS = {
    {3, 17, 0, 29, 8, 8, 21, 4, 11, 25, 1, 13}, {5, 6, 7}, {28, 2, 19, 19, 10, 14, 9}
  };

  final int hidden;
  final int heads;
  final int shared;
  final int width;

  /** Whether tokens see those behind them too, of a window as many as before them. */
  boolean ahead;

  ReferenceDecoder(int hidden, int heads, int shared, int width) {
    this.hidden = hidden;
    this.heads = heads;
    this.shared = shared;
    this.width = width;
  }

  abstract String config();

  abstract SmallCheckpoint weights();

  /**
   * The normed states of each token of a text.
   *
   * @param longest how many tokens the longest text of the batch has
   */
  abstract double[][] states(SmallCheckpoint w, int[] text, int longest);

  /** The logits of words for a state. */
  abstract double[] logits(SmallCheckpoint w, double[] state);

  private double[][] logits(SmallCheckpoint w, int[] text, int longest) {
    return SmallDecoder.each(states(w, text, longest), state -> logits(w, state));
  }

  /** The same of a model whose head classifies texts by their last tokens. */
  final void compareClassifying(Path folder) throws Exception {
    SmallCheckpoint weights = weights();
    weights.remove("lm_head.weight");
    weights.linear("score", hidden, SmallEncoder.LABELS, false);
    compareWithoutCaches(
        folder,
        "ForSequenceClassification",
        weights,
        x -> new double[][] {weights.linear("score", x[x.length - 1])});
  }

  /** The same of a model without a head. */
  final void compareStates(Path folder) throws Exception {
    SmallCheckpoint weights = weights();
    weights.remove("lm_head.weight");
    compareWithoutCaches(folder, "Model", weights, x -> x);
  }

  private void compareWithoutCaches(
      Path folder, String head, SmallCheckpoint weights, UnaryOperator<double[][]> given)
      throws Exception {
    Map<String, Tensor> inputs = beginning(TEXTS);
    inputs.keySet().removeIf(name -> name.startsWith("past_key_values"));
    List<double[][]> expected = new ArrayList<>();
    for (int[] text : TEXTS) {
      expected.add(given.apply(states(weights, text, TEXTS[0].length)));
    }
    String config = config().replaceAll("ForCausalLM|LMHeadModel", head);
    config = config.replaceFirst("\\{", "{\"num_labels\": 3, ");
    SmallEncoder.compare(folder, weights, config, inputs, expected, Set.of());
  }

  /** ONNX Runtime and libtorch give what the loops do of a padded batch and of a text in parts, and weights are found. */
  final void compare(Path folder) throws Exception {
    Libtorch.load();
    SmallCheckpoint weights = weights();
    weights.write(folder, config());
    List<String> notes = new ArrayList<>();
    OnnxModel model = TransformersModel.read(folder, notes::add);
    assertEquals(List.of(), notes);
    assertEquals(
        weights.matrices(),
        OnnxWeights.of(model).stream()
            .map(OnnxWeight::name)
            .collect(Collectors.toCollection(TreeSet::new)));
    OnnxModel trained = model.copy();
    HalfPrecision.widen(trained);
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = new OnnxGraph(trained)) {
      batch(weights, inputs -> OnnxRuntime.run(model, inputs));
      batch(weights, graph::forward);
      goesOn(weights, inputs -> OnnxRuntime.run(model, inputs));
      goesOn(weights, graph::forward);
      learns(weights, graph);
    }
    HostileConfigs.areRefusedOrRead(folder);
  }

  /** What runs a model. */
  private interface Run {
    Map<String, Tensor> of(Map<String, Tensor> inputs) throws Exception;
  }

  private static Tensor longs(long[] values, long... shape) {
    return torch.tensor(values).reshape(shape);
  }

  private Map<String, Tensor> beginning(int[][] texts) {
    int longest = texts[0].length;
    long[] ids = new long[texts.length * longest];
    long[] mask = new long[ids.length];
    for (int i = 0; i < texts.length; i++) {
      for (int t = 0; t < texts[i].length; t++) {
        ids[i * longest + t] = texts[i][t];
        mask[i * longest + t] = 1;
      }
    }
    Map<String, Tensor> inputs = new HashMap<>();
    inputs.put("input_ids", longs(ids, texts.length, longest));
    inputs.put("attention_mask", longs(mask, texts.length, longest));
    Tensor none =
        torch.zeros(
            new long[] {texts.length, shared, 0, width}, new TensorOptions(ScalarType.Float));
    for (int n = 0; n < LAYERS; n++) {
      inputs.put("past_key_values." + n + ".key", none);
      inputs.put("past_key_values." + n + ".value", none);
    }
    return inputs;
  }

  private void batch(SmallCheckpoint weights, Run run) throws Exception {
    Tensor logits = run.of(beginning(TEXTS)).get("logits");
    for (int i = 0; i < TEXTS.length; i++) {
      double[][] expected = logits(weights, TEXTS[i], TEXTS[0].length);
      for (int t = 0; t < TEXTS[i].length; t++) {
        close(expected[t], logits.select(0, i).select(0, t), "text " + i + " token " + t);
      }
    }
  }

  /** A text that is read in parts has the logits that it has as a whole. */
  private void goesOn(SmallCheckpoint weights, Run run) throws Exception {
    int[] text = TEXTS[2];
    double[][] whole = logits(weights, text, text.length);
    Map<String, Tensor> inputs = beginning(new int[][] {text});
    for (int[] part : new int[][] {{0, 4}, {4, 5}, {5, text.length}}) {
      long[] ids = new long[part[1] - part[0]];
      for (int t = part[0]; t < part[1]; t++) {
        ids[t - part[0]] = text[t];
      }
      inputs.put("input_ids", longs(ids, 1, ids.length));
      inputs.put("attention_mask", torch.ones(1, part[1]).to(ScalarType.Long));
      Map<String, Tensor> outputs = run.of(inputs);
      for (int t = part[0]; t < part[1]; t++) {
        close(
            whole[t],
            outputs.get("logits").select(0, 0).select(0, t - part[0]),
            "token " + t + " with what was read before");
      }
      for (int n = 0; n < LAYERS; n++) {
        for (String what : List.of(".key", ".value")) {
          inputs.put("past_key_values." + n + what, outputs.get("present." + n + what));
        }
      }
    }
  }

  /** Each tensor of the checkpoint is a parameter, and the loss depends on it. */
  private void learns(SmallCheckpoint weights, OnnxGraph graph) {
    Tensor logits = graph.forward(beginning(TEXTS)).get("logits");
    logits.mul(logits).mean().backward();
    Set<String> learning = new TreeSet<>();
    for (Parameter p : graph.parameters()) {
      assertTrue(p.tensor().grad().defined(), p.name());
      assertTrue(p.tensor().grad().abs().sum().item_double() > 0, p.name());
      learning.add(p.name());
    }
    assertEquals(weights.names(), learning);
  }

  private static void close(double[] expected, Tensor actual, String where) {
    Tensor values = actual.contiguous();
    float[] row = new float[expected.length];
    new FloatPointer(values.data_ptr()).get(row);
    for (int i = 0; i < expected.length; i++) {
      assertEquals(expected[i], row[i], 2e-4 * Math.max(1, Math.abs(expected[i])), where);
    }
  }

  /**
   * What the heads of a query see.
   *
   * @param window how many tokens; 0 for all before it
   * @param cap beyond which scores do not go; 0 for none
   */
  final double[] seen(
      double[] q, double[][] k, double[][] v, int place, int window, double scale, double cap) {
    double[] out = new double[heads * width];
    int before = ahead ? window / 2 : window - 1;
    int from = window > 0 ? Math.max(0, place - before) : 0;
    int to = ahead ? k.length : place + 1;
    if (ahead && window > 0) {
      to = Math.min(to, place + before + 1);
    }
    for (int head = 0; head < heads; head++) {
      int own = head * width;
      int at = head / (heads / shared) * width;
      SmallCheckpoint.attend(
          t -> {
            double score = SmallCheckpoint.dot(q, own, k[t], at, width) * scale;
            return cap == 0 ? score : cap * Math.tanh(score / cap);
          },
          v,
          from,
          to,
          own,
          at,
          width,
          out);
    }
    return out;
  }

  /** A state times each row of a table. */
  static double[] byWords(float[] table, double[] state) {
    double[] logits = new double[table.length / state.length];
    for (int word = 0; word < logits.length; word++) {
      for (int i = 0; i < state.length; i++) {
        logits[word] += table[word * state.length + i] * state[i];
      }
    }
    return logits;
  }
}
