package org.espalier.compress;

import static org.junit.jupiter.api.Assertions.assertEquals;

import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class WeightNamesTest {
  @ParameterizedTest
  @CsvSource({
    // name, embedding, table, head, router
    "model.embed_tokens.weight, true, true, false, false",
    "embeddings.word_embeddings.weight, true, true, false, false",
    "bert.embeddings.position_embeddings.weight, true, true, false, false",
    "embeddings.LayerNorm.weight, true, false, false, false",
    "encoder.embedding_hidden_mapping_in.weight, true, false, false, false",
    "transformer.wte.weight, true, true, false, false",
    "wpe.weight, true, true, false, false",
    "emb.weight, true, true, false, false",
    "tok_emb.weight, true, true, false, false",
    "transformer.pos_emb, true, false, false, false",
    "time_emb_proj.weight, false, false, false, false",
    "shared.weight, true, true, false, false",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight, true, true, false,"
        + " false",
    "lm_head.weight, false, false, true, false",
    "language_model.lm_head.weight, false, false, true, false",
    "embed_out.weight, true, false, true, false",
    "model.layers.0.self_attn.q_proj.weight, false, false, false, false",
    "model.layers.0.block_sparse_moe.gate.weight, false, false, false, true",
    "model.layers.0.mlp.gate_proj.weight, false, false, false, false",
    "model.layers.0.mlp.shared_expert.up_proj.weight, false, false, false, false",
    "encoder.layer.3.attention.self.query.weight, false, false, false, false",
    "pooler.dense.weight, false, false, false, false",
    "weight, false, false, false, false",
  })
  void namesTellTheLayer(
      String name, boolean embedding, boolean table, boolean head, boolean router) {
    assertEquals(embedding, WeightNames.isEmbedding(name), "embedding");
    assertEquals(table, WeightNames.isTable(name), "table");
    assertEquals(head, WeightNames.isHead(name), "head");
    assertEquals(router, WeightNames.isRouter(name), "router");
  }
}
