package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.List;
import org.espalier.transformers.TransformersModel.Part;

/**
 * Models of the kind of Whisper, which write what is said. The encoder takes {@code input_features}, [batch, mels, frames],
 * which two convolutions make half as many states of; there is no padding, and so no mask.
 */
final class WhisperModel extends BartModel {
  WhisperModel(Configuration config, GraphWriter g, Part part) {
    super(config, g, part);
    config.refuse("scale_embedding");
  }

  @Override
  boolean readsTexts() {
    return false;
  }

  @Override
  boolean normsFirst() {
    return true;
  }

  @Override
  boolean hasBias(String name) {
    return !name.endsWith(".k_proj");
  }

  @Override
  String finished(String x) {
    return norm(x, side() + ".layer_norm");
  }

  @Override
  String head() {
    return "proj_out";
  }

  @Override
  List<String> tables() {
    return List.of(base + "decoder.embed_tokens.weight");
  }

  @Override
  String embedded() {
    return part == Part.ENCODER ? heard() : super.embedded();
  }

  @Override
  String placed(String x) {
    return x;
  }

  @Override
  String rowsOfPlaces(String path) {
    String table = g.weight(path + ".weight", config.size("max_target_positions"), hidden);
    return g.node("Gather", path, List.of(table, ownPlaces()));
  }

  private String heard() {
    long mels = config.size("num_mel_bins");
    long places = config.size("max_source_positions");
    String x = g.floatInput("input_features", BATCH, mels, 2 * places);
    x = convolved(x, side() + ".conv1", mels, 1);
    x = convolved(x, side() + ".conv2", hidden, 2);
    String path = side() + ".embed_positions";
    x = g.node("Transpose", path, List.of(x), attribute("perm", new long[] {0, 2, 1}));
    return g.node("Add", path, List.of(x, g.weight(path + ".weight", places, hidden)));
  }

  /** Three frames each, with one of zeros at both ends. */
  private String convolved(String x, String path, long in, long step) {
    String made =
        g.node(
            "Conv",
            path,
            List.of(x, g.weight(path + ".weight", hidden, in, 3), g.weight(path + ".bias", hidden)),
            attribute("kernel_shape", new long[] {3}),
            attribute("pads", new long[] {1, 1}),
            attribute("strides", new long[] {step}));
    return g.activation("gelu", made, path);
  }
}
