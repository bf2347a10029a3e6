package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;
import java.util.Map;

/**
 * Language models of the kind of Phi-3: one product for queries, keys and values and one for the two of the feed-forward
 * block, heads of which a part may be turned, and LongRoPE: other angles where a text is longer than those of pre-training.
 */
final class Phi3Decoder extends LlamaDecoder {
  /** As configurations of several years call LongRoPE, beside none. */
  private static final List<String> TYPES = List.of("default", "longrope", "su", "yarn");

  private Rotary longRotary;

  Phi3Decoder(Configuration config, GraphWriter g) {
    super(config.withDefaults(Map.of("rms_norm_eps", 1e-5)), g);
  }

  @Override
  List<String> products(String x, String path) {
    long all = (heads + 2 * shared) * width;
    return List.of(g.linear(x, path + ".qkv_proj", hidden, all, false));
  }

  @Override
  boolean hasOutputBias() {
    return false;
  }

  @Override
  long window(long n) {
    return config.whole("sliding_window", 0, 0);
  }

  @Override
  String feedForward(String x, String path) {
    String both = g.linear(x, path + ".gate_up_proj", hidden, 2 * inner, false);
    List<String> parts = g.parts(both, path, 2);
    String made = gated(parts.get(0), parts.get(1), path);
    return g.linear(made, path + ".down_proj", inner, hidden, false);
  }

  @Override
  long turned() {
    return pairs((long) (width * rotaryShare()));
  }

  @Override
  Rotary rotary(long n) {
    Configuration settings = RotaryTable.settings(config);
    if (RotaryTable.type(settings, TYPES).equals("default")) {
      return super.rotary(n);
    }
    if (longRotary == null) {
      longRotary = longRotary(settings);
    }
    return longRotary;
  }

  /** Tables have the rows of short texts and behind them those of long ones, which all tokens of a long text take. */
  private Rotary longRotary(Configuration settings) {
    settings.refuse("factor");
    double[] angles = RotaryTable.powers(settings, config.positive("rope_theta", 10000), turned());
    double[] ofShort = divided(angles, settings, "short_factor");
    double[] ofLong = divided(angles, settings, "long_factor");
    String key = "original_max_position_embeddings";
    long first = settings.whole(key, config.whole(key, 4096, 2), 2);
    long last = sizes.positions();
    double factor = (double) last / first;
    double usual = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(first));
    double scale = settings.positive("attention_factor", usual);
    return new Rotary(
        g.constant(RotaryTable.tables("cos_cache", false, first, ofShort, last, ofLong, scale)),
        g.constant(RotaryTable.tables("sin_cache", true, first, ofShort, last, ofLong, scale)),
        rows(first));
  }

  /** The rows of tokens: their places, behind {@code first} others where a text has more tokens than these. */
  private String rows(long first) {
    String path = "position_ids/rows";
    String isLong = g.node("Greater", path, List.of(totalLength(), g.whole(first)));
    String one = g.node("Cast", path, List.of(isLong), attribute("to", DataType.INT64_VALUE));
    String before = g.node("Mul", path, List.of(one, g.whole(first)));
    return g.node("Add", path, List.of(positions(), before));
  }

  private static double[] divided(double[] angles, Configuration settings, String key) {
    double[] factors = settings.numbers(key);
    double[] divided = new double[angles.length];
    for (int i = 0; i < divided.length; i++) {
      if (factors.length != angles.length || factors[i] <= 0) {
        throw settings.wrong(key, "a list of " + angles.length + " numbers above 0");
      }
      divided[i] = angles[i] / factors[i];
    }
    return divided;
  }
}
