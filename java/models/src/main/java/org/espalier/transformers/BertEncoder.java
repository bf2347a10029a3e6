package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;
import java.util.stream.Stream;

/** Text encoders of the kind of BERT: layer norms behind each block. Kinds that differ from it are classes below. */
class BertEncoder extends TextEncoder {
  private static final String WORDS = "embeddings.word_embeddings.weight";

  /**
   * How the modules of a layer are called.
   *
   * @param layers what stands before a layer's number
   */
  record Names(
      String layers,
      String query,
      String key,
      String value,
      String out,
      String outNorm,
      String in,
      String down,
      String downNorm) {
    static final Names BERT =
        attending(".attention.self.query", ".attention.self.key", ".attention.self.value");

    /** BERT's with other names of queries, keys and values. */
    static Names attending(String query, String key, String value) {
      return new Names(
          "encoder.layer.",
          query,
          key,
          value,
          ".attention.output.dense",
          ".attention.output.LayerNorm",
          ".intermediate.dense",
          ".output.dense",
          ".output.LayerNorm");
    }
  }

  /**
   * The head that fills in words.
   *
   * @param bias how the bias of the decoder is called, if not as usual
   */
  record WordHead(String dense, String norm, String decoder, String bias, String activation) {}

  final String base;
  private final Names names;

  BertEncoder(Configuration config, GraphWriter g) {
    this(config, g, "bert.", Names.BERT);
  }

  BertEncoder(Configuration config, GraphWriter g, String prefix, Names names) {
    this(
        config,
        g,
        prefix,
        names,
        Sizes.of(config),
        config.positive("layer_norm_eps", 1e-12),
        "hidden_act");
  }

  private BertEncoder(
      Configuration config,
      GraphWriter g,
      String prefix,
      Names names,
      Sizes sizes,
      double epsilon,
      String activationKey) {
    super(config, g, sizes, epsilon, config.choice(activationKey, "gelu", GraphWriter.ACTIVATIONS));
    base = g.base(prefix, WORDS);
    this.names = names;
    config.refuse("position_embedding_type", "absolute");
    config.refuse("is_decoder");
    config.refuse("add_cross_attention");
  }

  @Override
  final String states(String ids, String mask) {
    String x = embedded(ids, mask);
    String more = scoreTerms(ids, mask);
    for (long n = 0; n < sizes.layers(); n++) {
      x = layer(x, base + names.layers() + n, more);
    }
    return x;
  }

  /** What is added to the scores of each layer. */
  String scoreTerms(String ids, String mask) {
    return tokens.hiding(mask);
  }

  private String layer(String x, String path, String more) {
    String seen = attention(x, path, more);
    String out = g.linear(seen, path + names.out(), hidden, hidden, true);
    String sum = g.node("Add", path + names.outNorm(), List.of(out, x));
    x = norm(sum, path + names.outNorm());
    out = feedForward(x, path + names.in(), path + names.down());
    sum = g.node("Add", path + names.downNorm(), List.of(out, x));
    return norm(sum, path + names.downNorm());
  }

  String attention(String x, String path, String more) {
    List<String> parts =
        Stream.of(names.query(), names.key(), names.value()).map(path::concat).toList();
    return attention(x, path + ".attention", parts, true, more);
  }

  /** How many numbers a row of the table of words has. */
  long rowWidth() {
    return hidden;
  }

  final String table() {
    return g.weight(base + WORDS, words(), rowWidth());
  }

  String embedded(String ids, String mask) {
    return g.layerNorm(summed(ids), base + "embeddings.LayerNorm", rowWidth(), epsilon);
  }

  /** The rows of words, of parts of texts and of places. */
  final String summed(String ids) {
    String path = base + "embeddings";
    String x = g.node("Gather", path + ".word_embeddings", List.of(table(), ids));
    long parts = parts();
    if (parts > 0) {
      String name = path + ".token_type_embeddings";
      String rows = g.weight(name + ".weight", parts, rowWidth());
      String which = parts > 1 ? g.input("token_type_ids", TOKENS) : g.whole(0);
      String part = g.node("Gather", name, List.of(rows, which));
      x = g.node("Add", path + "/parts", List.of(x, part));
    }
    if (!hasPlaces()) {
      return x;
    }
    String name = path + ".position_embeddings";
    String rows = g.weight(name + ".weight", config.size("max_position_embeddings"), rowWidth());
    String place = g.node("Gather", name, List.of(rows, positions(ids)));
    return g.node("Add", path + "/positions", List.of(x, place));
  }

  /** How many parts of texts are told apart. */
  long parts() {
    return config.whole("type_vocab_size", 2, 0);
  }

  /** Whether places have rows that are added to those of words. */
  boolean hasPlaces() {
    return true;
  }

  /** The rows of the table of places. */
  String positions(String ids) {
    return tokens.places(ids);
  }

  @Override
  String classified(String x, String mask) {
    String dense = g.linear(tokens.first(x), base + "pooler.dense", hidden, hidden, true);
    return linearHead(g.node("Tanh", "pooler", List.of(dense)), "classifier");
  }

  /** A linear layer, an activation and another, of the first token. */
  final String denseHead(String x, String activation) {
    String dense = g.linear(tokens.first(x), "classifier.dense", hidden, hidden, true);
    String bent =
        activation.equals("tanh")
            ? g.node("Tanh", "classifier", List.of(dense))
            : g.activation(activation, dense, "classifier");
    return linearHead(bent, "classifier.out_proj");
  }

  @Override
  final String tagged(String x) {
    return linearHead(x, "classifier");
  }

  @Override
  final String bounded(String x) {
    return g.linear(x, "qa_outputs", hidden, 2, true);
  }

  WordHead wordHead() {
    return new WordHead(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
        activation);
  }

  @Override
  final String filled(String x) {
    WordHead head = wordHead();
    if (!g.has(head.dense() + ".weight")) {
      return null;
    }
    String dense = g.linear(x, head.dense(), hidden, rowWidth(), true);
    String bent = g.activation(head.activation(), dense, head.dense());
    String normed = g.layerNorm(bent, head.norm(), rowWidth(), epsilon);
    String usual = head.decoder() + ".bias";
    String bias = g.has(head.bias()) ? head.bias() : usual;
    g.ignore(usual); // the same
    return byWords(normed, table(), rowWidth(), head.decoder(), bias);
  }

  /** RoBERTa, XLM-RoBERTa, CamemBERT: positions count tokens that are no padding. */
  static class Roberta extends BertEncoder {
    Roberta(Configuration config, GraphWriter g) {
      this(config, g, "roberta.", Names.BERT);
    }

    private Roberta(Configuration config, GraphWriter g, String prefix, Names names) {
      super(config, g, prefix, names);
    }

    /** The word that fills up texts. */
    long padding() {
      return config.whole("pad_token_id", 1, 0);
    }

    /** Places of tokens that are no padding, counted from behind the padding's own. */
    @Override
    final String positions(String ids) {
      long padding = padding();
      String path = "position_ids";
      String none = g.node("Equal", path, List.of(ids, g.whole(padding)));
      String some =
          g.node(
              "Cast",
              path,
              List.of(g.node("Not", path, List.of(none))),
              attribute("to", DataType.INT64_VALUE));
      String count = g.node("CumSum", path, List.of(some, g.whole(1)));
      String counted = g.node("Mul", path, List.of(count, some));
      return g.node("Add", path, List.of(counted, g.whole(padding)));
    }

    @Override
    String classified(String x, String mask) {
      return denseHead(x, "tanh");
    }

    @Override
    WordHead wordHead() {
      return new WordHead(
          "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias", "gelu");
    }
  }

  /** DistilBERT: other names, and no parts of texts. */
  static final class DistilBert extends BertEncoder {
    private static final Names NAMES =
        new Names(
            "transformer.layer.",
            ".attention.q_lin",
            ".attention.k_lin",
            ".attention.v_lin",
            ".attention.out_lin",
            ".sa_layer_norm",
            ".ffn.lin1",
            ".ffn.lin2",
            ".output_layer_norm");

    DistilBert(Configuration config, GraphWriter g) {
      super(
          config,
          g,
          "distilbert.",
          NAMES,
          Sizes.of(config, "dim", "n_heads", "hidden_dim", "n_layers"),
          1e-12,
          "activation");
    }

    @Override
    long parts() {
      return 0;
    }

    @Override
    String classified(String x, String mask) {
      String dense = g.linear(tokens.first(x), "pre_classifier", hidden, hidden, true);
      return linearHead(g.node("Relu", "pre_classifier", List.of(dense)), "classifier");
    }

    @Override
    WordHead wordHead() {
      return new WordHead(
          "vocab_transform",
          "vocab_layer_norm",
          "vocab_projector",
          "vocab_projector.bias",
          activation);
    }
  }

  /** ELECTRA: rows of tables may be narrower than what layers compute on. */
  static final class Electra extends BertEncoder {
    Electra(Configuration config, GraphWriter g) {
      super(config, g, "electra.", Names.BERT);
    }

    @Override
    long rowWidth() {
      return config.size("embedding_size", 128);
    }

    @Override
    String embedded(String ids, String mask) {
      String x = super.embedded(ids, mask);
      return rowWidth() == hidden
          ? x
          : g.linear(x, base + "embeddings_project", rowWidth(), hidden, true);
    }

    @Override
    String classified(String x, String mask) {
      return denseHead(x, "gelu");
    }

    @Override
    WordHead wordHead() {
      return new WordHead(
          "generator_predictions.dense",
          "generator_predictions.LayerNorm",
          "generator_lm_head",
          "generator_lm_head.bias",
          "gelu");
    }
  }

  /** MPNet: to scores is added what is learned of how far tokens are from one another. */
  static final class MpNet extends Roberta {
    /** How many distances are told apart; those from the half of each direction's on share them. */
    private static final int BUCKETS = 32;

    private static final int FAR = 128;

    private static final Names NAMES =
        new Names(
            "encoder.layer.",
            ".attention.attn.q",
            ".attention.attn.k",
            ".attention.attn.v",
            ".attention.attn.o",
            ".attention.LayerNorm",
            ".intermediate.dense",
            ".output.dense",
            ".output.LayerNorm");

    MpNet(Configuration config, GraphWriter g) {
      super(config, g, "mpnet.", NAMES);
    }

    @Override
    long parts() {
      return 0;
    }

    @Override
    long padding() {
      return 1;
    }

    @Override
    String scoreTerms(String ids, String mask) {
      String path = base + "encoder.relative_attention_bias";
      long count = config.whole("relative_attention_num_buckets", BUCKETS, BUCKETS);
      String table = g.weight(path + ".weight", count, sizes.heads());
      long places = config.size("max_position_embeddings");
      String rows = byDistance(ids, path + "/buckets", places, MpNet::bucket);
      String found = g.node("Gather", path, List.of(table, rows));
      String byHead =
          g.node("Transpose", path, List.of(found), attribute("perm", new long[] {2, 0, 1}));
      String wide = g.node("Unsqueeze", path, List.of(byHead, g.wholes(0)));
      return g.node("Add", path + "/mask", List.of(wide, tokens.hiding(mask)));
    }

    /** By how far a token is behind another. */
    private static int bucket(int distance) {
      int half = BUCKETS / 2;
      int exact = half / 2;
      int far = Math.abs(distance);
      float share = (float) Math.log((float) far / exact) / (float) Math.log(FAR / exact);
      int bucket = far < exact ? far : Math.min(half - 1, exact + (int) (share * (half - exact)));
      return distance < 0 ? half + bucket : bucket;
    }
  }
}
