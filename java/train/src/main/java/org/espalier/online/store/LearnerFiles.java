package org.espalier.online.store;

import java.io.BufferedInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.online.Learnable;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.model.Perceptron;
import org.espalier.online.model.TorchLearnable;
import org.espalier.online.privacy.PrivacyPass;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.SigningKey;
import org.espalier.store.StoreWriter;
import org.espalier.store.Version;

/**
 * A learner as a version of a {@link ModelStore}: the served model ({@code model.onnx} or {@code model.pt}
 * where the model came from ONNX or TorchScript, else {@code model.safetensors} with the weights),
 * {@code learner.state} with everything else, {@code online.yaml} with the recipe.
 *
 * <p>A module written in Java ({@link org.espalier.torch.ModuleModel}) is published as its weights. Only a
 * program that has its class can go on with it: it makes the learner and calls {@link #load}.
 */
public final class LearnerFiles {
  /** The served weights. */
  public static final String MODEL = "model.safetensors";

  /** The served model, where it came from ONNX. */
  public static final String GRAPH = "model.onnx";

  /** The served model, where it came from TorchScript. */
  public static final String SCRIPT = "model.pt";

  /** What a resumed run needs. */
  public static final String STATE = "learner.state";

  /** The recipe. */
  public static final String RECIPE = "online.yaml";

  private LearnerFiles() {}

  /**
   * Publishes the learner as it is, with its metrics and its epsilon.
   *
   * @param recipe the recipe's text
   * @param lineage parent and data window; metrics and epsilon are set here
   * @param key signs it, or null
   * @param current whether it becomes the store's current version
   */
  public static Version publish(
      StoreWriter writer,
      OnlineLearner learner,
      String recipe,
      Lineage lineage,
      SigningKey key,
      boolean current) {
    return publish(writer, learner, recipe, lineage, key, current, files -> {});
  }

  /**
   * Publishes the learner with further files.
   *
   * @param beside writes further files of the version, as of what makes the learner's features
   */
  public static Version publish(
      StoreWriter writer,
      OnlineLearner learner,
      String recipe,
      Lineage lineage,
      SigningKey key,
      boolean current,
      StoreWriter.Content beside) {
    synchronized (learner) {
      Map<String, Double> metrics = new LinkedHashMap<>(learner.metrics());
      metrics.values().removeIf(value -> !Double.isFinite(value));
      Lineage full = lineage.withRecipe(recipe).withMetrics(metrics).withEpsilon(learner.epsilon());
      String main = mainFile(learner.model());
      StoreWriter.Content content =
          files -> {
            switch (main) {
              case GRAPH -> files.write(GRAPH, learner.toOnnx().toBuffer());
              case SCRIPT -> writeScript(files, learner);
              default -> writeModel(files, learner);
            }
            try (FileChannel channel = files.create(STATE)) {
              learner.save(Channels.newOutputStream(channel));
            } catch (IOException e) {
              throw files.failure(STATE, e);
            }
            files.write(RECIPE, ByteBuffer.wrap(recipe.getBytes(StandardCharsets.UTF_8)));
            beside.write(files);
          };
      return current
          ? writer.publish(content, main, full, key)
          : writer.propose(content, main, full, key);
    }
  }

  private static String mainFile(Learnable model) {
    if (model instanceof TorchLearnable torch) {
      return torch.isOnnx() ? GRAPH : torch.isTorchScript() ? SCRIPT : MODEL;
    }
    return model instanceof Perceptron ? GRAPH : MODEL;
  }

  private static void writeScript(StoreWriter.NewVersion files, OnlineLearner learner) {
    try {
      Path file = Files.createTempFile("espalier", ".pt");
      try {
        ((TorchLearnable) learner.model()).writeTorchScript(learner.weights(), file);
        files.copy(file, SCRIPT);
      } finally {
        Files.delete(file);
      }
    } catch (IOException e) {
      throw files.failure(SCRIPT, e);
    }
  }

  private static void writeModel(StoreWriter.NewVersion files, OnlineLearner learner) {
    Map<String, float[]> weights = learner.weights();
    List<TensorSpec> specs = new ArrayList<>();
    for (String name : weights.keySet()) {
      specs.add(
          new TensorSpec(
              name, SafetensorsDtype.F32, Arrays.stream(learner.shape(name)).boxed().toList()));
    }
    try (FileChannel channel = files.create(MODEL)) {
      SafetensorsWriter writer =
          new SafetensorsWriter(
              channel,
              e -> files.failure(MODEL, e),
              specs,
              Map.of("version", Long.toString(learner.version())));
      weights.forEach(
          (name, values) -> {
            ByteBuffer bytes =
                ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
            bytes.asFloatBuffer().put(values);
            writer.append(name, bytes);
          });
      writer.finish();
    } catch (IOException e) {
      throw files.failure(MODEL, e);
    }
  }

  /**
   * The model of a version, to be learned on.
   *
   * @throws InputException if the version's main file is no model that can be learned
   */
  public static Learnable readModel(ModelStore.Held version, OnlineRecipe recipe) {
    return ModelFiles.read(version.model(), recipe);
  }

  /**
   * The recipe that a version was learned with.
   *
   * @throws InputException if it has none
   */
  public static OnlineRecipe recipe(ModelStore.Held version) {
    Path file = version.file(RECIPE);
    try {
      return OnlineRecipe.parse(
          Files.readString(file, StandardCharsets.UTF_8),
          RECIPE + " of version " + version.version().id());
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
    }
  }

  /** Whether a learner made a version, so that it can be gone on with. */
  public static boolean isLearned(ModelStore.Held version) {
    return version.version().files().stream().anyMatch(f -> f.path().equals(STATE));
  }

  /**
   * The passes of private learning that a version tells of; none where no learner made it or it was not private.
   *
   * @throws InputException if its state cannot be read
   */
  public static List<PrivacyPass> passes(ModelStore.Held version) {
    if (!isLearned(version)) {
      return List.of();
    }
    Path file = version.file(STATE);
    try (InputStream in = Files.newInputStream(file)) {
      return OnlineLearner.passes(in);
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
    }
  }

  /** Goes on where a version was published; see {@link OnlineLearner#load}. */
  public static void load(OnlineLearner learner, ModelStore.Held version) {
    Path file = version.file(STATE);
    try (InputStream in = new BufferedInputStream(Files.newInputStream(file))) {
      learner.load(in);
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
    }
  }
}
