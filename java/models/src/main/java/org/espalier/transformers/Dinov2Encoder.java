package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.List;
import java.util.Map;
import org.espalier.format.onnx.OnnxInitializer;

/**
 * Image encoders of the kind of DINOv2: what a block makes is multiplied by a learned number for each channel, feed-forward
 * blocks may be gated, and positions are resampled where images have another size than {@code image_size}: that which {@code
 * preprocessor_config.json} makes.
 */
class Dinov2Encoder extends VisionEncoder {
  private static final String PROCESSOR = "preprocessor_config.json";

  private static final Map<String, ?> DEFAULTS =
      Map.of(
          "hidden_size",
          768,
          "num_hidden_layers",
          12,
          "num_attention_heads",
          12,
          "layer_norm_eps",
          1e-6);

  private final boolean gated;
  private final long[] image;

  Dinov2Encoder(Configuration config, GraphWriter g) {
    this(config.withDefaults(Map.of("patch_size", 14)).withDefaults(DEFAULTS), g, "dinov2.");
  }

  private Dinov2Encoder(Configuration config, GraphWriter g, String prefix) {
    super(config, g, prefix, Sizes.of(config, inner(config)), names(gated(config)));
    gated = gated(config);
    image = made();
  }

  private static boolean gated(Configuration config) {
    return config.flag("use_swiglu_ffn", false);
  }

  private static Layer names(boolean gated) {
    return new Layer(
        ".norm1",
        ".attention.attention.query",
        ".attention.attention.key",
        ".attention.attention.value",
        ".attention.output.dense",
        ".norm2",
        gated ? ".mlp.weights_in" : ".mlp.fc1",
        gated ? ".mlp.weights_out" : ".mlp.fc2");
  }

  /** The width of feed-forward blocks. */
  private static long inner(Configuration config) {
    double wide = config.size("hidden_size") * config.positive("mlp_ratio", 4);
    if (!(wide >= 1 && wide <= Integer.MAX_VALUE)) {
      throw config.wrong("mlp_ratio", "a number by which hidden_size gives 1 or more");
    }
    long inner = (long) wide;
    return gated(config) ? (inner * 2 / 3 + 7) / 8 * 8 : inner;
  }

  /** The height and width that images are made in, where the folder says so; else those of the configuration. */
  private long[] made() {
    Configuration processor = config.beside(PROCESSOR);
    if (processor == null) {
      return super.image();
    }
    boolean cropped = processor.has("crop_size") && processor.flag("do_center_crop", true);
    boolean resized = processor.has("size") && processor.flag("do_resize", true);
    String key = cropped ? "crop_size" : "size";
    long[] made = cropped || resized ? processor.rectangle(key) : null;
    if (made == null) {
      return super.image();
    }
    if (Math.min(made[0], made[1]) < patch()) {
      throw processor.wrong(key, "patch_size = " + patch() + " or more");
    }
    return made;
  }

  @Override
  final long[] image() {
    return image;
  }

  @Override
  final String scaled(String out, String path, int block) {
    String factors = g.weight(path + ".layer_scale" + block + ".lambda1", hidden);
    return g.node("Mul", path + ".layer_scale" + block, List.of(out, factors));
  }

  @Override
  final String fed(String x, String in, String down) {
    if (!gated) {
      return super.fed(x, in, down);
    }
    long inner = sizes.inner();
    List<String> parts = g.parts(g.linear(x, in, hidden, 2 * inner, true), in, 2);
    String opened = g.activation("silu", parts.get(0), in);
    return g.linear(g.node("Mul", in, List.of(opened, parts.get(1))), down, inner, hidden, true);
  }

  /** Positions as they are where images have as many squares as they were learned for, else resampled. */
  @Override
  final String positions(String name) {
    if (squares() == row * row && image[0] == image[1]) {
      return g.weight(name, 1, 1 + row * row, hidden);
    }
    PositionTable table = new PositionTable(g.floats(name, 1, 1 + row * row, hidden), row);
    OnnxInitializer made = table.resampled(image[0] / patch(), image[1] / patch(), smooth());
    g.tell(
        name
            + " is resampled for images of "
            + image[0]
            + " x "
            + image[1]
            + " pixels, the size that "
            + PROCESSOR
            + " makes them in");
    return g.constant(made);
  }

  /** Whether positions are resampled with more than their neighbours where there are fewer of them. */
  boolean smooth() {
    return false;
  }

  /** Logits by the first token and the mean of squares. */
  @Override
  final boolean classified(String x, List<String> classes) {
    boolean named = names(classes, CLASSIFIES);
    if (named) {
      String mean = mean(between(x, "squares", before(), Long.MAX_VALUE));
      String both =
          g.node("Concat", "pooled", List.of(tokens.first(x), mean), attribute("axis", -1L));
      giveLogits(both, "classifier", 2 * hidden);
    }
    return named;
  }

  /** DINOv2 with registers: more learned tokens, which have no positions. */
  static final class WithRegisters extends Dinov2Encoder {
    private final long registers;

    WithRegisters(Configuration config, GraphWriter g) {
      super(config.withDefaults(DEFAULTS), g, "dinov2_with_registers.");
      registers = config.whole("num_register_tokens", 4, 0);
    }

    @Override
    long before() {
      return 1 + registers;
    }

    @Override
    boolean smooth() {
      return true;
    }

    @Override
    String registered(String x, String pixels) {
      String path = base + "embeddings.register_tokens";
      if (registers == 0) {
        return x;
      }
      String tokens = g.weight(path, 1, registers, hidden);
      List<String> parts =
          List.of(
              between(x, path + "/first", 0, 1),
              forEach(pixels, tokens, registers),
              between(x, path + "/squares", 1, Long.MAX_VALUE));
      return g.node("Concat", path + "/all", parts, attribute("axis", 1L));
    }
  }
}
