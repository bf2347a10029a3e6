package org.espalier.transformers;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Set;

/** A model of a kind with experts in plain loops: each token goes through those that it chose, one after the other. */
final class SmallMixture extends SmallDecoder {
  static final int EXPERTS = 5;
  static final int TAKEN = 2;
  private static final int SHARED_INNER = 80;

  private final String block;
  private final List<String> products;
  private final int expertInner;
  private final boolean normed;

  /** Layers whose block is one for all tokens. */
  Set<Integer> plain = Set.of();

  boolean sharedExpert;

  private SmallMixture(
      String type,
      String settings,
      String block,
      List<String> products,
      int expertInner,
      boolean normed) {
    super(type, settings + ", \"num_experts_per_tok\": " + TAKEN);
    this.block = block;
    this.products = products;
    this.expertInner = expertInner;
    this.normed = normed;
  }

  static SmallMixture mixtral(String settings) {
    SmallMixture model =
        new SmallMixture(
            "mixtral",
            settings + ", \"num_local_experts\": " + EXPERTS,
            "block_sparse_moe",
            List.of(".w1", ".w3", ".w2"),
            INNER,
            true);
    model.turnedBy(powers(1e6, WIDTH));
    return model;
  }

  /** Of a model_type of Qwen's, which does not make the weights of experts add up to 1 where settings say nothing of it. */
  static SmallMixture qwen(String type, String settings, boolean normed) {
    return new SmallMixture(
        type,
        settings
            + ", \"num_experts\": "
            + EXPERTS
            + ", \"moe_intermediate_size\": 32, \"shared_expert_intermediate_size\": "
            + SHARED_INNER,
        "mlp",
        List.of(".gate_proj", ".up_proj", ".down_proj"),
        32,
        normed);
  }

  static SmallMixture qwen2(String settings) {
    SmallMixture model = qwen("qwen2_moe", settings, false);
    model.bias = true;
    model.sharedExpert = true;
    return model;
  }

  static SmallMixture qwen3(String settings) {
    SmallMixture model = qwen("qwen3_moe", settings + ", \"norm_topk_prob\": true", true);
    model.headNorms = true;
    return model;
  }

  private boolean isPlain(String path) {
    return plain.stream().anyMatch(n -> path.contains("layers." + n + "."));
  }

  @Override
  void addProducts(SmallCheckpoint w, String path) {
    super.addProducts(w, path);
    if (isPlain(path + ".")) {
      return;
    }
    List.of("gate", "up", "down").forEach(name -> w.remove(path + ".mlp." + name + "_proj.weight"));
    String own = path + "." + block;
    // Larger than others, so that no two experts are nearly equal.
    w.add(own + ".gate.weight", 0, 0.5, EXPERTS, HIDDEN);
    for (int e = 0; e < EXPERTS; e++) {
      addExpert(w, own + ".experts." + e, expertInner);
    }
    if (sharedExpert) {
      addExpert(w, own + ".shared_expert", SHARED_INNER);
      w.linear(own + ".shared_expert_gate", HIDDEN, 1, false);
    }
  }

  private void addExpert(SmallCheckpoint w, String path, int inner) {
    w.linear(path + products.get(0), HIDDEN, inner, false);
    w.linear(path + products.get(1), HIDDEN, inner, false);
    w.linear(path + products.get(2), inner, HIDDEN, false);
  }

  @Override
  double[] feedForward(SmallCheckpoint w, String path, double[] x) {
    if (isPlain(path)) {
      return super.feedForward(w, path, x);
    }
    String own = path.replace(".mlp", "." + block);
    double[] scores = w.linear(own + ".gate", x);
    double all = 0;
    for (double score : scores) {
      all += Math.exp(score);
    }
    List<Integer> order = new ArrayList<>();
    for (int e = 0; e < EXPERTS; e++) {
      order.add(e);
    }
    order.sort(Comparator.comparing(e -> -scores[e]));
    double taken = 0;
    for (int e : order.subList(0, TAKEN)) {
      taken += Math.exp(scores[e]);
    }
    double[] sum = new double[HIDDEN];
    for (int e : order.subList(0, TAKEN)) {
      double share = Math.exp(scores[e]) / (normed ? taken : all);
      add(sum, share, expert(w, own + ".experts." + e, x));
    }
    if (sharedExpert) {
      double gate = w.linear(own + ".shared_expert_gate", x)[0];
      add(sum, 1 / (1 + Math.exp(-gate)), expert(w, own + ".shared_expert", x));
    }
    return sum;
  }

  private double[] expert(SmallCheckpoint w, String path, double[] x) {
    double[] up = w.linear(path + products.get(1), x);
    return w.linear(path + products.get(2), gated(w.linear(path + products.get(0), x), up));
  }

  private static void add(double[] sum, double share, double[] part) {
    for (int i = 0; i < sum.length; i++) {
      sum[i] += share * part[i];
    }
  }
}
