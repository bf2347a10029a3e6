package org.espalier.compress;

import java.util.Locale;
import java.util.Set;

/**
 * What the name of a tensor tells about the layer that it belongs to, by the conventions of the
 * models on the Hugging Face hub: names are dotted paths of modules with the parameter at the end.
 */
public final class WeightNames {
  /** Modules that are lookup tables in every architecture we know. */
  private static final Set<String> TABLES =
      Set.of(
          "emb",
          "embed_tokens",
          "embed_positions",
          "embed_in",
          "embedding",
          "embeddings",
          "pos_emb",
          "position_embedding",
          "position_embeddings",
          "relative_attention_bias",
          "shared",
          "tok_emb",
          "tok_embeddings",
          "token_embedding",
          "token_type_embeddings",
          "word_embeddings",
          "wpe",
          "wte");

  private static final Set<String> HEADS = Set.of("lm_head", "embed_out");

  /** Routers of mixture-of-experts layers, which readers keep in float. */
  private static final Set<String> ROUTERS = Set.of("gate", "router", "shared_expert_gate");

  private WeightNames() {}

  /**
   * Whether the tensor looks like part of an embedding: one of its modules is a lookup table or
   * says so.
   */
  public static boolean isEmbedding(String tensor) {
    for (String part : tensor.toLowerCase(Locale.ROOT).split("\\.")) {
      if (TABLES.contains(part) || part.contains("embed") || part.contains("embd")) {
        return true;
      }
    }
    return false;
  }

  /** Whether the tensor's own module is a lookup table, not a layer beside one. */
  static boolean isTable(String tensor) {
    return TABLES.contains(last(module(tensor)));
  }

  /** Whether the tensor's own module is the output head, which may be tied to the embeddings. */
  public static boolean isHead(String tensor) {
    return HEADS.contains(last(module(tensor)));
  }

  /** Whether the tensor's own module chooses experts. */
  static boolean isRouter(String tensor) {
    return ROUTERS.contains(last(module(tensor)));
  }

  /** The module of a parameter: the name up to its last dot. */
  static String module(String tensor) {
    int dot = tensor.lastIndexOf('.');
    return dot < 0 ? "" : tensor.substring(0, dot);
  }

  private static String last(String module) {
    return module.substring(module.lastIndexOf('.') + 1);
  }
}
