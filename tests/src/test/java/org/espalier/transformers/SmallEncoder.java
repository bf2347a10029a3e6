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
import java.util.function.Consumer;
import java.util.function.DoubleUnaryOperator;
import java.util.stream.Collectors;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.espalier.cli.SmallLanguage;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.torch.Libtorch;
import org.espalier.torch.Parameter;
import org.espalier.torch.onnx.OnnxGraph;
import org.espalier.torch.onnx.OnnxRuntime;

/** A model of the kind of BERT in plain loops over doubles; classes that differ from it say how. */
class SmallEncoder {
  static final int HIDDEN = 48;
  static final int INNER = 64;
  static final int WORDS = SmallLanguage.VOCABULARY;
  static final int LAYERS = 2;
  static final int HEADS = 3;
  static final int WIDTH = HIDDEN / HEADS;
  static final int PLACES = 40;
  static final int LABELS = 3;

  /** 1 is RoBERTa's padding, as 0 is others'. */
  static final int[][] TEXTS = {
    {3, 17, 2, 29, 8, 8, 21, 14, 9, 27, 5, 11, 20, 6, 2, 25, 13, 4, 19, 28, 7, 22},
    {5, 6, 7},
    {28, 2, 19, 12, 10}
  };

  /**
   * The names of a layer's modules.
   *
   * @param layers before the number of a layer
   */
  record Layer(
      String layers,
      String q,
      String k,
      String v,
      String out,
      String norm,
      String in,
      String down,
      String end) {
    static final Layer BERT =
        bert(
            ".attention.self.query",
            ".attention.self.key",
            ".attention.self.value",
            ".attention.output.dense",
            ".attention.output.LayerNorm");

    static final Layer DISTIL =
        new Layer(
            "transformer.layer.",
            ".attention.q_lin",
            ".attention.k_lin",
            ".attention.v_lin",
            ".attention.out_lin",
            ".sa_layer_norm",
            ".ffn.lin1",
            ".ffn.lin2",
            ".output_layer_norm");

    static Layer bert(String q, String k, String v, String out, String norm) {
      return new Layer(
          "encoder.layer.",
          q,
          k,
          v,
          out,
          norm,
          ".intermediate.dense",
          ".output.dense",
          ".output.LayerNorm");
    }
  }

  /** What a head makes of states: a row a token, or one row. */
  interface Head {
    double[][] of(SmallCheckpoint w, double[][] states);
  }

  final String type;
  final String base;
  Layer names = Layer.BERT;
  String settings = "";
  String architecture = "Model";
  SafetensorsDtype dtype = SafetensorsDtype.F32;
  DoubleUnaryOperator activation = SmallCheckpoint::gelu;
  double epsilon = 1e-5;
  int inner = INNER;
  int parts = 2;
  boolean masks = true;
  int padding;
  int firstPlace;
  Consumer<SmallCheckpoint> headWeights = w -> {};
  Head head = (w, states) -> states;

  /** What the model has and the graph does not. */
  Set<String> unused = Set.of();

  SmallEncoder(String type, String base) {
    this.type = type;
    this.base = base;
  }

  /** Gives it a head. */
  final SmallEncoder with(String architecture, Consumer<SmallCheckpoint> headWeights, Head head) {
    this.architecture = architecture;
    this.headWeights = headWeights;
    this.head = head;
    return this;
  }

  String config() {
    return """
{"model_type": "%s", "architectures": ["%s"], "hidden_size": %d, "intermediate_size": %d,
 "vocab_size": %d, "num_hidden_layers": %d, "num_attention_heads": %d,
 "max_position_embeddings": %d, "layer_norm_eps": %s,
 "id2label": {"0": "a", "1": "b", "2": "c"}%s}
"""
        .formatted(
            type, architecture, HIDDEN, inner, WORDS, LAYERS, HEADS, PLACES, epsilon, settings);
  }

  int rowWidth() {
    return HIDDEN;
  }

  final SmallCheckpoint weights() {
    SmallCheckpoint w = new SmallCheckpoint(type.hashCode(), dtype);
    addEmbeddings(w);
    for (int n = 0; n < LAYERS; n++) {
      addLayer(w, base + names.layers() + n);
    }
    headWeights.accept(w);
    return w;
  }

  void addEmbeddings(SmallCheckpoint w) {
    w.add(base + "embeddings.word_embeddings.weight", 0, 1, WORDS, rowWidth());
    w.add(base + "embeddings.position_embeddings.weight", 0, 1, PLACES, rowWidth());
    if (parts > 0) {
      w.add(base + "embeddings.token_type_embeddings.weight", 0, 1, parts, rowWidth());
    }
    w.norm(base + "embeddings.LayerNorm", rowWidth(), true);
  }

  void addLayer(SmallCheckpoint w, String path) {
    for (String name : List.of(names.q(), names.k(), names.v(), names.out())) {
      w.linear(path + name, HIDDEN, HIDDEN, true);
    }
    w.norm(path + names.norm(), HIDDEN, true);
    w.linear(path + names.in(), HIDDEN, inner, true);
    w.linear(path + names.down(), inner, HIDDEN, true);
    w.norm(path + names.end(), HIDDEN, true);
  }

  double[][] embedded(SmallCheckpoint w, int[] text) {
    double[][] x = new double[text.length][];
    for (int t = 0; t < text.length; t++) {
      double[] sum = w.row(base + "embeddings.word_embeddings.weight", text[t], rowWidth());
      sum = SmallCheckpoint.plus(sum, place(w, firstPlace + t));
      if (parts > 0) {
        String name = base + "embeddings.token_type_embeddings.weight";
        sum = SmallCheckpoint.plus(sum, w.row(name, 0, rowWidth()));
      }
      x[t] = w.layerNorm(base + "embeddings.LayerNorm", sum, epsilon);
    }
    return x;
  }

  private double[] place(SmallCheckpoint w, int place) {
    return w.row(base + "embeddings.position_embeddings.weight", place, rowWidth());
  }

  double[][] states(SmallCheckpoint w, int[] text) {
    double[][] x = embedded(w, text);
    for (int n = 0; n < LAYERS; n++) {
      x = layer(w, base + names.layers() + n, x);
    }
    return x;
  }

  private double[][] layer(SmallCheckpoint w, String path, double[][] x) {
    double[][] seen = attention(w, path, x);
    double[][] y = new double[x.length][];
    for (int t = 0; t < x.length; t++) {
      double[] out = w.linear(path + names.out(), seen[t]);
      double[] first = w.layerNorm(path + names.norm(), SmallCheckpoint.plus(x[t], out), epsilon);
      double[] inner = SmallCheckpoint.each(w.linear(path + names.in(), first), activation);
      double[] down = w.linear(path + names.down(), inner);
      y[t] = w.layerNorm(path + names.end(), SmallCheckpoint.plus(first, down), epsilon);
    }
    return y;
  }

  /** Layers with norms before their blocks. */
  final double[][] preNormLayers(SmallCheckpoint w, double[][] x) {
    for (int n = 0; n < LAYERS; n++) {
      String path = base + names.layers() + n;
      double[][] normed = each(x, row -> w.layerNorm(path + names.norm(), row, epsilon));
      double[][] seen = attention(w, path, normed);
      for (int t = 0; t < x.length; t++) {
        double[] out = w.linear(path + names.out(), seen[t]);
        x[t] = SmallCheckpoint.plus(x[t], scaled(w, path + ".layer_scale1", out));
        out = fed(w, path, w.layerNorm(path + names.end(), x[t], epsilon));
        x[t] = SmallCheckpoint.plus(x[t], scaled(w, path + ".layer_scale2", out));
      }
    }
    return x;
  }

  /** What of a block's result is added. */
  double[] scaled(SmallCheckpoint w, String path, double[] out) {
    return out;
  }

  double[] fed(SmallCheckpoint w, String path, double[] x) {
    double[] inner = SmallCheckpoint.each(w.linear(path + names.in(), x), activation);
    return w.linear(path + names.down(), inner);
  }

  /** How many tokens of a text one sees. */
  int seen(int token, int tokens) {
    return tokens;
  }

  /** What heads see, side by side. */
  final double[][] attention(SmallCheckpoint w, String path, double[][] x) {
    double[][] q = each(x, row -> w.linear(path + names.q(), row));
    double[][] k = each(x, row -> w.linear(path + names.k(), row));
    double[][] v = each(x, row -> w.linear(path + names.v(), row));
    double[][] seen = new double[x.length][HIDDEN];
    for (int t = 0; t < x.length; t++) {
      int from = t;
      for (int h = 0; h < HEADS; h++) {
        int head = h;
        SmallCheckpoint.attend(
            to -> score(w, path, q, k, from, to, head),
            v,
            0,
            seen(t, x.length),
            h * WIDTH,
            h * WIDTH,
            WIDTH,
            seen[t]);
      }
    }
    return seen;
  }

  double score(
      SmallCheckpoint w, String path, double[][] q, double[][] k, int from, int to, int head) {
    int at = head * WIDTH;
    return SmallCheckpoint.dot(q[from], at, k[to], at, WIDTH) / Math.sqrt(WIDTH);
  }

  static double[][] each(double[][] rows, SmallDecoder.Row f) {
    return SmallDecoder.each(rows, f);
  }

  /** ONNX Runtime and libtorch give what the loops do of a padded batch, and weights are found and learn. */
  void compare(Path folder) throws Exception {
    SmallCheckpoint weights = weights();
    compare(
        folder,
        stored(weights),
        config(),
        inputs(),
        Arrays.stream(TEXTS).map(t -> head.of(weights, states(weights, t))).toList(),
        unused);
  }

  /** What is written of weights. */
  SmallCheckpoint stored(SmallCheckpoint weights) {
    return weights;
  }

  final Map<String, Tensor> inputs() {
    int longest = TEXTS[0].length;
    long[] ids = new long[TEXTS.length * longest];
    long[] mask = new long[ids.length];
    Arrays.fill(ids, padding);
    for (int i = 0; i < TEXTS.length; i++) {
      for (int t = 0; t < TEXTS[i].length; t++) {
        ids[i * longest + t] = TEXTS[i][t];
        mask[i * longest + t] = 1;
      }
    }
    Map<String, Tensor> inputs = new HashMap<>();
    long[] shape = {TEXTS.length, longest};
    inputs.put("input_ids", torch.tensor(ids).reshape(shape));
    if (masks) {
      inputs.put("attention_mask", torch.tensor(mask).reshape(shape));
    }
    if (parts > 1) {
      inputs.put("token_type_ids", torch.zeros_like(inputs.get("input_ids")));
    }
    return inputs;
  }

  /**
   * Compares a model with what is right.
   *
   * @param expected of each text or image the rows, or the one row, that the model must give
   * @param unused tensors that the graph does without
   */
  static void compare(
      Path folder,
      SmallCheckpoint weights,
      String config,
      Map<String, Tensor> inputs,
      List<double[][]> expected,
      Set<String> unused)
      throws Exception {
    Libtorch.load();
    weights.write(folder, config);
    List<String> notes = new ArrayList<>();
    OnnxModel model = TransformersModel.read(folder, notes::add);
    notes.removeIf(note -> note.contains("is resampled"));
    assertEquals(unused.isEmpty(), notes.isEmpty(), notes.toString());
    unused.forEach(name -> assertTrue(notes.get(0).contains(name), notes.get(0)));
    OnnxModel trained = model.copy();
    HalfPrecision.widen(trained);
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = new OnnxGraph(trained)) {
      Tensor[] outputs = {only(OnnxRuntime.run(model, inputs)), only(graph.forward(inputs))};
      for (Tensor output : outputs) {
        for (int i = 0; i < expected.size(); i++) {
          close(expected.get(i), output.select(0, i), "number " + i);
        }
      }
      learns(weights, graph, outputs[1], unused);
    }
    Set<String> found =
        OnnxWeights.of(model).stream()
            .map(OnnxWeight::name)
            .collect(Collectors.toCollection(TreeSet::new));
    Set<String> matrices = weights.matrices();
    matrices.removeAll(unused);
    matrices.removeIf(name -> name.endsWith("rel_embeddings.weight")); // normed before it is used
    if (!inputs.containsKey("attention_mask")) { // all positions are added, and none looked up
      matrices.removeIf(name -> name.endsWith("position_embedding.weight"));
    }
    assertTrue(found.containsAll(matrices), found + " of " + matrices);
    HostileConfigs.areRefusedOrRead(folder);
  }

  /** The one output, or of a model that answers questions both, side by side. */
  private static Tensor only(Map<String, Tensor> outputs) {
    Tensor begins = outputs.get("start_logits");
    if (begins != null) {
      assertEquals(Set.of("start_logits", "end_logits"), outputs.keySet());
      return torch.stack(new TensorVector(begins, outputs.get("end_logits")), -1);
    }
    assertEquals(1, outputs.size());
    return outputs.values().iterator().next();
  }

  private static void learns(
      SmallCheckpoint weights, OnnxGraph graph, Tensor output, Set<String> unused) {
    output.mul(output).mean().backward();
    Set<String> learning = new TreeSet<>(unused);
    for (Parameter p : graph.parameters()) {
      double size = p.tensor().grad().abs().sum().item_double();
      assertTrue(size > 0 || p.name().endsWith(".bias"), p.name());
      learning.add(p.name());
    }
    assertEquals(weights.names(), learning);
  }

  private static void close(double[][] expected, Tensor actual, String where) {
    for (int t = 0; t < expected.length; t++) {
      Tensor row = actual.dim() == 1 ? actual : actual.select(0, t);
      float[] values = new float[expected[t].length];
      assertEquals(values.length, row.numel(), where);
      new FloatPointer(row.contiguous().data_ptr()).get(values);
      for (int i = 0; i < values.length; i++) {
        double bound = 1e-4 * Math.max(1, Math.abs(expected[t][i]));
        assertEquals(expected[t][i], values[i], bound, where + " token " + t);
      }
    }
  }
}
