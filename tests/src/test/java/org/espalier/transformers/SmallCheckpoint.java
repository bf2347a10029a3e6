package org.espalier.transformers;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.DoubleUnaryOperator;
import java.util.function.IntToDoubleFunction;
import java.util.stream.DoubleStream;
import java.util.stream.LongStream;
import org.espalier.format.HalfFloats;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorSpec;

/** Folders of random weights as Transformers names them, and the weights for who computes with them otherwise. */
public final class SmallCheckpoint {
  private final Map<String, float[]> values = new TreeMap<>();
  private final Map<String, List<Long>> shapes = new TreeMap<>();
  private final Map<TensorSpec, byte[]> others = new LinkedHashMap<>();
  private final Random random;
  private final SafetensorsDtype type;

  /**
   * @param type F32 or BF16, to which all values are rounded
   */
  SmallCheckpoint(long seed, SafetensorsDtype type) {
    random = new Random(seed);
    this.type = type;
  }

  /** Those of a model of type llama in float32 whose heads, as many as its configuration says, are one another's equals. */
  static SmallCheckpoint languageModel(int words, int hidden, int inner, int layers) {
    SmallCheckpoint w = new SmallCheckpoint(1, SafetensorsDtype.F32);
    w.add("model.embed_tokens.weight", 0, 1, words, hidden);
    for (int n = 0; n < layers; n++) {
      String path = "model.layers." + n;
      for (String name : List.of("q_proj", "k_proj", "v_proj", "o_proj")) {
        w.linear(path + ".self_attn." + name, hidden, hidden, false);
      }
      w.norm(path + ".input_layernorm", hidden, false);
      w.norm(path + ".post_attention_layernorm", hidden, false);
      w.linear(path + ".mlp.gate_proj", hidden, inner, false);
      w.linear(path + ".mlp.up_proj", hidden, inner, false);
      w.linear(path + ".mlp.down_proj", inner, hidden, false);
    }
    w.norm("model.norm", hidden, false);
    w.linear("lm_head", hidden, words, false);
    return w;
  }

  /** Writes a language model of two layers. */
  public static void writeLanguageModel(Path folder, int words) throws IOException {
    languageModel(words, 64, 96, 2)
        .write(
            folder,
            """
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
             "intermediate_size": 96, "vocab_size": %d, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 64}
            """
                .formatted(words));
  }

  /** Writes a language model of {@code SmallLanguage}'s words, of a model_type: gpt2, phi3, gemma3_text, mixtral, qwen2_moe or qwen3_moe. */
  public static void writeLanguageModel(Path folder, String type) throws IOException {
    ReferenceDecoder model =
        switch (type) {
          case "gpt2" -> new SmallGpt2("transformer.", "");
          case "phi3" -> new SmallPhi3.OfLongContexts();
          case "mixtral" -> SmallMixture.mixtral("");
          case "qwen2_moe" -> SmallMixture.qwen2("");
          case "qwen3_moe" -> SmallMixture.qwen3("");
          case "gemma3_text" -> SmallGemma.gemma3(", \"sliding_window_pattern\": 2");
          default -> throw new IllegalArgumentException(type);
        };
    model.weights().write(folder, model.config());
  }

  /** Writes a text encoder of {@code SmallLanguage}'s words, of a model_type: deberta-v2, modernbert or mpnet. */
  public static void writeTextEncoder(Path folder, String type) throws IOException {
    SmallEncoder model =
        switch (type) {
          case "deberta-v2" -> new SmallDeberta(true, 8);
          case "modernbert" -> new SmallModernBert("model.", "");
          case "mpnet" -> new SmallMpNet("");
          default -> throw new IllegalArgumentException(type);
        };
    model.weights().write(folder, model.config());
  }

  /** Writes a model of the kind of BERT of {@code SmallLanguage}'s words, whose blocks have an inner width. */
  public static void writeBert(Path folder, int inner) throws IOException {
    SmallEncoder model = new SmallEncoder("bert", "");
    model.inner = inner;
    model.weights().write(folder, model.config());
  }

  /** Writes a module Dense of sentence-transformers, which ends with a tangent. */
  public static void writeDense(Path folder, int in, int out) throws IOException {
    SmallCheckpoint w = new SmallCheckpoint(5, SafetensorsDtype.F32);
    w.linear("linear", in, out, true);
    w.write(folder, "{\"in_features\": %d, \"out_features\": %d}".formatted(in, out));
  }

  /** Writes a model of the kind of ModernBERT that fills in {@code SmallLanguage}'s words. */
  public static void writeFillingModel(Path folder) throws IOException {
    SmallModernBert model = new SmallModernBert("model.", "");
    model.with(
        "ModernBertForMaskedLM",
        w -> {
          model.addHead(w);
          w.add("decoder.bias", 0, 0.3, SmallEncoder.WORDS);
        },
        (w, x) -> x);
    model.weights().write(folder, model.config());
  }

  /** Writes a model of the kind of BERT that tags {@code SmallLanguage}'s words. */
  public static void writeTagger(Path folder) throws IOException {
    SmallEncoder model = new SmallEncoder("bert", "bert.");
    model.with(
        "BertForTokenClassification",
        w -> w.linear("classifier", SmallEncoder.HIDDEN, SmallEncoder.LABELS, true),
        (w, x) -> x);
    model.weights().write(folder, model.config());
  }

  /** Writes a model of the kind of BERT that tells of each of {@code SmallLanguage}'s words whether an answer begins or ends there. */
  public static void writeAnswering(Path folder) throws IOException {
    SmallEncoder model = new SmallEncoder("bert", "bert.");
    model.with(
        "BertForQuestionAnswering",
        w -> w.linear("qa_outputs", SmallEncoder.HIDDEN, 2, true),
        (w, x) -> x);
    model.weights().write(folder, model.config());
  }

  /** Writes a model of two encoders, of texts of {@code SmallLanguage}'s words and of images of 25 pixels to a side: clip or siglip. */
  public static void writeModelOfTwo(Path folder, String type) throws IOException {
    if (type.equals("clip")) {
      SmallClip.write(folder);
    } else {
      SmallClip.writeSiglip(folder);
    }
  }

  /** Writes an encoder and a decoder of {@code SmallLanguage}'s words, of a model_type: marian, bart, t5 or whisper. */
  public static void writePair(Path folder, String type) throws IOException {
    ReferencePair model =
        switch (type) {
          case "t5" -> new SmallT5("relu");
          case "whisper" -> new SmallWhisper();
          default -> new SmallBart(type);
        };
    model.weights().write(folder, model.config());
  }

  /** Writes one of model_type t5 whose head is a table of its own, so that words are seldom followed by themselves. */
  public static void writePairOfAHead(Path folder) throws IOException {
    ReferencePair model = SmallT5.ofAHead();
    model.weights().write(folder, model.config());
  }

  /** Writes an image encoder of images of 25 pixels to a side, of a model_type: vit, dinov2 or dinov2_with_registers. */
  public static void writeImageModel(Path folder, String type) throws IOException {
    SmallVision model =
        switch (type) {
          case "vit" -> new SmallVision("vit.", true);
          case "dinov2" -> new SmallDinov2(0, false, false);
          case "dinov2_with_registers" -> new SmallDinov2(2, true, true);
          default -> throw new IllegalArgumentException(type);
        };
    model.weights().write(folder, model.config());
  }

  /** The values of a tensor. */
  float[] get(String name) {
    float[] found = values.get(name);
    if (found == null) {
      throw new IllegalArgumentException(name);
    }
    return found;
  }

  List<Long> shape(String name) {
    return shapes.get(name);
  }

  /** Replaces the values of a tensor. */
  void set(String name, float[] made) {
    if (made.length != get(name).length) {
      throw new IllegalArgumentException(name);
    }
    values.put(name, made);
  }

  /** Adds a tensor of another type, in place of one of the same name. */
  void addBytes(String name, SafetensorsDtype of, byte[] bytes, long... shape) {
    others.keySet().removeIf(spec -> spec.name().equals(name));
    others.put(new TensorSpec(name, of, LongStream.of(shape).boxed().toList()), bytes);
  }

  Set<String> names() {
    return new TreeSet<>(values.keySet());
  }

  /** The names of tensors of two dimensions, less tables of one row. */
  Set<String> matrices() {
    Set<String> names = names();
    names.removeIf(
        name ->
            shapes.get(name).size() != 2
                || shapes.get(name).get(0) == 1 && !name.endsWith("_gate.weight"));
    return names;
  }

  boolean has(String name) {
    return values.containsKey(name);
  }

  /** Values around {@code mean}. */
  void add(String name, double mean, double deviation, long... shape) {
    float[] made = new float[(int) LongStream.of(shape).reduce(1, (a, b) -> a * b)];
    for (int i = 0; i < made.length; i++) {
      float value = (float) (mean + deviation * random.nextGaussian());
      made[i] =
          type == SafetensorsDtype.BF16
              ? HalfFloats.ofBfloat16(HalfFloats.toBfloat16(value))
              : value;
    }
    values.put(name, made);
    shapes.put(name, LongStream.of(shape).boxed().toList());
  }

  /** A Linear module. */
  void linear(String name, long in, long out, boolean bias) {
    add(name + ".weight", 0, 0.8 / Math.sqrt(in), out, in);
    if (bias) {
      add(name + ".bias", 0, 0.2, out);
    }
  }

  /** A module whose weight is [in, out]. */
  void turnedLinear(String name, long in, long out) {
    add(name + ".weight", 0, 0.8 / Math.sqrt(in), in, out);
    add(name + ".bias", 0, 0.2, out);
  }

  void norm(String name, long width, boolean bias) {
    add(name + ".weight", 1, 0.2, width);
    if (bias) {
      add(name + ".bias", 0, 0.2, width);
    }
  }

  /** A norm that multiplies by one more than its weight. */
  void normAroundZero(String name, long width) {
    add(name + ".weight", 0, 0.2, width);
  }

  /** Adds all of another. */
  void addAll(SmallCheckpoint other) {
    values.putAll(other.values);
    shapes.putAll(other.shapes);
    others.putAll(other.others);
  }

  void remove(String name) {
    values.remove(name);
    shapes.remove(name);
    others.keySet().removeIf(spec -> spec.name().equals(name));
  }

  /** The same with other endings of names. */
  SmallCheckpoint renamed(String from, String to) {
    SmallCheckpoint other = new SmallCheckpoint(0, type);
    values.forEach(
        (name, value) -> {
          String now =
              name.endsWith(from) ? name.substring(0, name.length() - from.length()) + to : name;
          other.values.put(now, value);
          other.shapes.put(now, shapes.get(name));
        });
    return other;
  }

  /** Writes {@code config.json} and {@code model.safetensors}. */
  void write(Path folder, String config) throws IOException {
    Files.createDirectories(folder);
    Files.writeString(folder.resolve("config.json"), config);
    write(folder.resolve("model.safetensors"), values.keySet(), others);
  }

  /** Writes {@code config.json}, two shards and their index. */
  void writeShards(Path folder, String config) throws IOException {
    Files.createDirectories(folder);
    Files.writeString(folder.resolve("config.json"), config);
    StringBuilder index = new StringBuilder();
    List<String> names = List.copyOf(values.keySet());
    for (int shard = 0; shard < 2; shard++) {
      String file = "model-0000" + (shard + 1) + "-of-00002.safetensors";
      int middle = names.size() / 2;
      List<String> own =
          shard == 0 ? names.subList(0, middle) : names.subList(middle, names.size());
      write(folder.resolve(file), own, Map.of());
      for (String name : own) {
        index.append(index.length() == 0 ? "" : ", ");
        index.append("\"%s\": \"%s\"".formatted(name, file));
      }
    }
    Files.writeString(
        folder.resolve("model.safetensors.index.json"), "{\"weight_map\": {" + index + "}}");
  }

  private void write(Path file, Collection<String> names, Map<TensorSpec, byte[]> more) {
    Map<TensorSpec, byte[]> tensors = new LinkedHashMap<>(more);
    for (String name : names) {
      tensors.put(new TensorSpec(name, type, shapes.get(name)), bytes(values.get(name)));
    }
    RawSafetensors.write(file, Map.of("format", "pt"), tensors);
  }

  private byte[] bytes(float[] value) {
    ByteBuffer bytes =
        ByteBuffer.allocate(value.length * type.bits() / 8).order(ByteOrder.LITTLE_ENDIAN);
    for (float v : value) {
      if (type == SafetensorsDtype.BF16) {
        bytes.putShort(HalfFloats.toBfloat16(v));
      } else {
        bytes.putFloat(v);
      }
    }
    return bytes.array();
  }

  /** W·x + b of a Linear module. */
  double[] linear(String name, double[] x) {
    float[] w = get(name + ".weight");
    double[] y = new double[w.length / x.length];
    for (int o = 0; o < y.length; o++) {
      double sum = has(name + ".bias") ? get(name + ".bias")[o] : 0;
      for (int i = 0; i < x.length; i++) {
        sum += (double) w[o * x.length + i] * x[i];
      }
      y[o] = sum;
    }
    return y;
  }

  /** A row of a table. */
  double[] row(String name, int row, int width) {
    double[] values = new double[width];
    for (int i = 0; i < width; i++) {
      values[i] = get(name)[row * width + i];
    }
    return values;
  }

  /** W·x + b of a module whose weight is [in, out]. */
  double[] turnedLinear(String name, double[] x) {
    float[] w = get(name + ".weight");
    double[] y = new double[w.length / x.length];
    for (int o = 0; o < y.length; o++) {
      y[o] = get(name + ".bias")[o];
      for (int i = 0; i < x.length; i++) {
        y[o] += (double) w[i * y.length + o] * x[i];
      }
    }
    return y;
  }

  /** Root mean square norm. */
  double[] rootMeanSquareNorm(String name, double[] x, double epsilon) {
    return rootMeanSquareNorm(name, x, epsilon, 0);
  }

  /**
   * The same.
   *
   * @param more is added to its weight
   */
  double[] rootMeanSquareNorm(String name, double[] x, double epsilon, double more) {
    double squares = 0;
    for (double v : x) {
      squares += v * v;
    }
    double factor = 1 / Math.sqrt(squares / x.length + epsilon);
    double[] y = new double[x.length];
    for (int i = 0; i < x.length; i++) {
      y[i] = x[i] * factor * (more + get(name + ".weight")[i]);
    }
    return y;
  }

  double[] layerNorm(String name, double[] x, double epsilon) {
    double mean = 0;
    for (double v : x) {
      mean += v / x.length;
    }
    double variance = 0;
    for (double v : x) {
      variance += (v - mean) * (v - mean) / x.length;
    }
    double[] y = new double[x.length];
    for (int i = 0; i < x.length; i++) {
      y[i] =
          (x[i] - mean) / Math.sqrt(variance + epsilon) * get(name + ".weight")[i]
              + (has(name + ".bias") ? get(name + ".bias")[i] : 0);
    }
    return y;
  }

  static double[] plus(double[] a, double[] b) {
    double[] sum = new double[a.length];
    for (int i = 0; i < a.length; i++) {
      sum[i] = a[i] + b[i];
    }
    return sum;
  }

  /** a·b of a head. */
  static double dot(double[] a, int from, double[] b, int at, int width) {
    double sum = 0;
    for (int i = 0; i < width; i++) {
      sum += a[from + i] * b[at + i];
    }
    return sum;
  }

  /**
   * softmax(scores) · v for one query and one head.
   *
   * @param score by key
   * @param from the first key that is seen
   * @param to the end of those
   * @param offset where the head begins in what comes out
   * @param shared where it begins in values
   */
  static void attend(
      IntToDoubleFunction score,
      double[][] v,
      int from,
      int to,
      int offset,
      int shared,
      int width,
      double[] out) {
    double[] scores = new double[to];
    double largest = Double.NEGATIVE_INFINITY;
    for (int t = from; t < to; t++) {
      scores[t] = score.applyAsDouble(t);
      largest = Math.max(largest, scores[t]);
    }
    double sum = 0;
    for (int t = from; t < to; t++) {
      sum += Math.exp(scores[t] - largest);
    }
    for (int t = from; t < to; t++) {
      for (int i = 0; i < width; i++) {
        out[offset + i] += Math.exp(scores[t] - largest) / sum * v[t][shared + i];
      }
    }
  }

  static double geluNew(double x) {
    return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
  }

  static double quickGelu(double x) {
    return x / (1 + Math.exp(-1.702 * x));
  }

  static double silu(double x) {
    return x / (1 + Math.exp(-x));
  }

  /** By Simpson's rule for the normal distribution. */
  static double gelu(double x) {
    int steps = 400;
    double h = x / steps;
    double sum = 0;
    for (int i = 0; i <= steps; i++) {
      double weight = i == 0 || i == steps ? 1 : i % 2 == 1 ? 4 : 2;
      sum += weight * Math.exp(-0.5 * (i * h) * (i * h));
    }
    return x * (0.5 + sum * h / 3 / Math.sqrt(2 * Math.PI));
  }

  static double[] each(double[] x, DoubleUnaryOperator f) {
    return DoubleStream.of(x).map(f).toArray();
  }
}
