package org.espalier.evaluate;

import java.util.Collection;
import java.util.List;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.OnnxModel;

/** Runs a text model on sentences in ONNX Runtime, each alone. */
public final class TextActivations implements ActivationSource {
  private final List<Tokens> texts;
  private final int threads;

  /**
   * A source of activations.
   *
   * @param tokenizer the model's; used here only
   * @param texts at least one
   * @param threads threads of one run, at least 1
   */
  public TextActivations(TextTokenizer tokenizer, List<String> texts, int threads) {
    this(threads, texts.stream().map(tokenizer::encode).toList());
  }

  /**
   * A source of activations.
   *
   * @param threads threads of one run, at least 1
   * @param texts at least one
   */
  public TextActivations(int threads, List<Tokens> texts) {
    if (texts.isEmpty()) {
      throw new InputException("calibration needs at least one text");
    }
    this.texts = texts;
    this.threads = threads;
  }

  @Override
  public boolean canHold() {
    return true;
  }

  @Override
  public int count() {
    return texts.size();
  }

  @Override
  public TextActivations some(int count) {
    return new TextActivations(threads, ActivationSource.spread(texts, count));
  }

  /**
   * How many times as fast as a model its compressed form runs on one of the texts, of middle length, on one thread.
   *
   * @return NaN where ONNX Runtime does not load the model itself, as of bfloat16
   * @throws InputException where a model cannot be run
   */
  public double speedup(OnnxModel reference, OnnxModel candidate) {
    return Savings.speedup(reference, candidate, texts);
  }

  @Override
  public void run(OnnxModel model, Collection<String> activations, Receiver receiver) {
    Set<String> fetched = Set.copyOf(activations);
    try (OnnxTextModel session = new OnnxTextModel(model.withOutputs(activations), threads)) {
      for (Tokens text : texts) {
        session.run(List.of(text), fetched, receiver::accept);
      }
    }
  }

  @Override
  public Held hold(
      OnnxModel model, Collection<String> activations, Receiver receiver, Set<String> held) {
    OnnxModel giving = HeldTensors.giving(model, activations, held);
    try (OnnxTextModel loaded = new OnnxTextModel(giving, threads)) {
      return HeldTensors.behind(
          model,
          loaded.session(),
          activations,
          receiver,
          held,
          threads,
          run -> {
            for (Tokens text : texts) {
              run.run(loaded.inputs(List.of(text)));
            }
          });
    }
  }
}
