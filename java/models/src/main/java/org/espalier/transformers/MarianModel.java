package org.espalier.transformers;

import java.util.List;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.transformers.TransformersModel.Part;

/**
 * Models of the kind of Marian, which translate (OPUS-MT): places are waves, and the two parts may have words of their own.
 */
final class MarianModel extends BartModel {
  private static final long MOST_VALUES = 1 << 28;

  private final boolean shared;

  MarianModel(Configuration config, GraphWriter g, Part part) {
    super(config, g, part);
    shared = config.flag("share_encoder_decoder_embeddings", true);
  }

  @Override
  long words() {
    long words = super.words();
    return shared || part == Part.ENCODER ? words : config.size("decoder_vocab_size", words);
  }

  @Override
  List<String> tables() {
    return shared ? super.tables() : List.of(side() + ".embed_tokens.weight");
  }

  /** Checkpoints have them seldom, since they follow. */
  @Override
  String rowsOfPlaces(String path) {
    String name = path + ".weight";
    long count = config.size("max_position_embeddings");
    String table = g.has(name) ? g.weight(name, count, hidden) : g.constant(waves(name, count));
    return g.node("Gather", path, List.of(table, ownPlaces()));
  }

  /** The sines of position · 10000^(−2i / hidden) for each i, and behind them the cosines. */
  private OnnxInitializer waves(String name, long count) {
    if (count > MOST_VALUES / hidden) {
      throw config.wrong("max_position_embeddings", "at most " + MOST_VALUES / hidden);
    }
    int width = (int) hidden;
    int sines = (width + 1) / 2;
    float[] table = new float[(int) count * width];
    for (int at = 0; at < table.length; at++) {
      int column = at % width;
      int pair = column < sines ? column : column - sines;
      double angle = at / width / Math.pow(10000, 2.0 * pair / width);
      table[at] = (float) (column < sines ? Math.sin(angle) : Math.cos(angle));
    }
    return OnnxInitializer.floats(name, new long[] {count, hidden}, table);
  }

  @Override
  String placed(String x) {
    return x;
  }
}
