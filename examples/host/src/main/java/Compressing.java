import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import org.espalier.backend.CpuThreads;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.evaluate.FidelityEvaluator;
import org.espalier.evaluate.MeasuredModel;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.TextActivations;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.recipe.Recipe;
import org.espalier.recipe.RecipeRun;
import org.espalier.recipe.RunMonitor;
import org.espalier.torch.TorchDevice;

/**
 * A text encoder in int8, made inside an application: first by calibration alone, in seconds, then trained to follow
 * the original, as a recipe says. Arguments: MODEL.onnx TOKENIZER.json TEXTS.txt OUT STEPS.
 */
public final class Compressing {
  private static final int TOKENS = 64;

  public static void main(String[] args) throws IOException {
    Path model = Path.of(args[0]).toAbsolutePath();
    Path tokenizer = Path.of(args[1]).toAbsolutePath();
    Path texts = Path.of(args[2]).toAbsolutePath();
    Path out = Files.createDirectories(Path.of(args[3]));
    calibrate(model, tokenizer, Files.readAllLines(texts), out.resolve("calibrated.onnx"));
    train(model, tokenizer, texts, out.resolve("trained"), Integer.parseInt(args[4]));
  }

  /** Half of the texts calibrate, the others tell how close the result is. */
  private static void calibrate(Path model, Path tokenizerFile, List<String> texts, Path target) {
    List<String> seen = texts.subList(0, texts.size() / 2);
    List<String> others = texts.subList(texts.size() / 2, texts.size());
    try (TextTokenizer tokenizer = new TextTokenizer(tokenizerFile, TOKENS)) {
      OnnxModel onnx = OnnxModel.read(model);
      DynamicQuantizer quantizer = new DynamicQuantizer(onnx, DynamicQuantizer.Options.defaults());
      quantizer.calibrate(new TextActivations(tokenizer, seen, CpuThreads.get()));
      quantizer.apply();
      onnx.write(target, model);
      var fidelity =
          new FidelityEvaluator(tokenizer, Pooling.MEAN)
              .evaluate(MeasuredModel.of(model), MeasuredModel.of(target), others, Progress.NONE);
      System.out.printf(Locale.ROOT, "calibrated: %s%n", fidelity.toMap());
    }
  }

  private static void train(Path model, Path tokenizer, Path texts, Path folder, int steps) {
    String text =
        """
        seed: 1
        model: {file: '%s', tokenizer: '%s', max-tokens: %d}
        data: {texts: '%s', validation: 8, evaluation: 16, calibration: 16}
        stages:
          - {kind: quantize, form: dynamic, steps: %d, batch: 8}
        """
            .formatted(model, tokenizer, TOKENS, texts, steps);
    Recipe recipe = Recipe.parse("the recipe of Compressing", text, List.of());
    RunMonitor monitor =
        new RunMonitor() {
          @Override
          public void note(String line) {
            System.out.println(line);
          }
        };
    RecipeRun run = new RecipeRun(recipe, folder.getParent(), folder, monitor, TorchDevice.best());
    System.out.printf("trained: %s, %s%n", run.run(false), folder.resolve(RecipeRun.REPORT_HTML));
  }
}
