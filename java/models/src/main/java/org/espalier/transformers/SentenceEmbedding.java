package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.transformers.SentenceModules.Module;

/**
 * Writes what sentence-transformers makes of the states of a text's tokens where linear layers are part of it: pooling, the
 * modules Dense, which lie in folders of their own, and the scaling to length 1 where that is one of the modules.
 */
final class SentenceEmbedding {
  static final String OUTPUT = "sentence_embedding";
  private static final String TANH = "torch.nn.modules.activation.Tanh";

  /** What bends a layer's sums, by PyTorch's class, as operators and {@link GraphWriter#activation activations} are called. */
  private static final Map<String, String> ACTIVATIONS =
      new TreeMap<>(
          Map.of(
              "torch.nn.modules.linear.Identity",
              "",
              TANH,
              "Tanh",
              "torch.nn.modules.activation.Sigmoid",
              "Sigmoid",
              "torch.nn.modules.activation.ReLU",
              "relu",
              "torch.nn.modules.activation.GELU",
              "gelu",
              "torch.nn.modules.activation.SiLU",
              "silu"));

  private final GraphWriter g;
  private final Tokens tokens;
  private final Path folder;

  /**
   * @param folder of the checkpoint
   */
  SentenceEmbedding(GraphWriter g, Path folder) {
    this.g = g;
    this.folder = folder;
    tokens = new Tokens(g);
  }

  /**
   * Puts it behind a graph that gives the states of tokens.
   *
   * @return false where the graph gives none
   * @throws org.espalier.InputException if a module asks for what is not computed here, or has not what it should have
   */
  boolean write(SentenceModules modules) {
    long width = g.hasInput(Encoder.MASK) ? g.takeOutput(Encoder.STATES) : -1;
    if (width < 0) {
      return false;
    }
    String own = modules.pooling().folder();
    List<String> modes =
        PoolingModes.read(
            (own.isEmpty() ? folder : folder.resolve(own)).resolve(Configuration.FILE));
    List<String> parts = modes.stream().map(this::pooled).toList();
    String x =
        parts.size() == 1
            ? parts.get(0)
            : g.node("Concat", "pooling", parts, attribute("axis", 1L));
    width *= parts.size();
    for (Module module : modules.head()) {
      if (module.kind().equals(SentenceModules.NORMALIZE)) {
        x = scaled(x, module.folder());
      } else {
        Configuration config = Configuration.read(folder.resolve(module.folder()));
        x = dense(x, module.folder(), config, width);
        width = config.size("out_features");
      }
    }
    g.output(OUTPUT, x, Encoder.BATCH, width);
    return true;
  }

  /** The states of each text as one, [batch, width]. */
  private String pooled(String mode) {
    String x = Encoder.STATES;
    String mask = Encoder.MASK;
    String path = "pooling/" + mode;
    return switch (mode) {
      case "cls" -> tokens.first(x);
      case "max" -> {
        String hidden = g.node("Sub", path, List.of(tokens.kept(mask), g.number(1)));
        String least = g.node("Mul", path, List.of(hidden, g.number(Float.MAX_VALUE)));
        String seen = g.node("Add", path, List.of(x, least));
        yield g.node(
            "ReduceMax",
            path,
            List.of(seen),
            attribute("axes", new long[] {1}),
            attribute("keepdims", 0L));
      }
      case "mean" -> tokens.mean(x, tokens.kept(mask), path);
      case "mean_sqrt_len_tokens" -> {
        String kept = tokens.kept(mask);
        String sum = tokens.sum(g.node("Mul", path, List.of(x, kept)), path);
        String length = g.node("Sqrt", path, List.of(tokens.sum(kept, path + "/length")));
        yield g.node("Div", path, List.of(sum, length));
      }
      case "weightedmean" -> tokens.mean(x, counted(mask, path), path);
      case "lasttoken" -> tokens.last(x, mask, path);
      default -> throw new IllegalArgumentException(mode);
    };
  }

  /** 1 for the first token of a text, 2 for the second; 0 for padding: [batch, tokens, 1]. */
  private String counted(String mask, String path) {
    String count = g.node("CumSum", path, List.of(mask, g.whole(1)));
    String kept = g.node("Mul", path + "/count", List.of(count, mask));
    return tokens.kept(kept);
  }

  /** By the length of each embedding, which is at least 1e-12. */
  private String scaled(String x, String path) {
    String square = g.node("Mul", path, List.of(x, x));
    String sum = g.node("ReduceSum", path, List.of(square, g.wholes(1)), attribute("keepdims", 1L));
    String length = g.node("Sqrt", path, List.of(sum));
    String least = g.node("Max", path, List.of(length, g.number(1e-12f)));
    return g.node("Div", path, List.of(x, least));
  }

  private String dense(String x, String path, Configuration config, long in) {
    if (config.size("in_features") != in) {
      throw config.wrong("in_features", "what the module before gives, " + in + ",");
    }
    List<String> known = new ArrayList<>(ACTIVATIONS.keySet());
    String activation = ACTIVATIONS.get(config.choice("activation_function", TANH, known));
    for (String key : List.of("module_input_name", "module_output_name")) {
      config.choice(key, OUTPUT, List.of(OUTPUT));
    }
    long out = config.size("out_features");
    try (Checkpoint checkpoint = Checkpoint.open(folder.resolve(path))) {
      CheckpointTensors tensors = new CheckpointTensors(checkpoint, path + "/");
      String sums = g.product(x, path, g.asFloat32(tensors.floats("linear.weight", out, in)));
      if (config.flag("bias", true)) {
        String bias = g.asFloat32(tensors.floats("linear.bias", out));
        sums = g.node("Add", path, List.of(sums, bias));
      }
      g.addFiles(tensors.files());
      return activation.isEmpty() ? sums : bent(sums, activation, path);
    }
  }

  private String bent(String x, String activation, String path) {
    return GraphWriter.ACTIVATIONS.contains(activation)
        ? g.activation(activation, x, path)
        : g.node(activation, path, List.of(x));
  }
}
