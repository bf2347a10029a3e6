package org.espalier.encoder;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.compress.onnx.OpsetUpgrade;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.TextFeatures;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.format.InputFile;
import org.espalier.format.JsonReason;
import org.espalier.format.Sha256;
import org.espalier.format.onnx.JoinedModel;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.online.ExampleInput;
import org.espalier.online.Learnable;
import org.espalier.store.ModelStore;
import org.espalier.store.StoreWriter;
import org.espalier.store.Version;

/**
 * A fixed text encoder in front of what learns: it makes the features that are learned from. Each version of what learns
 * has its files beside its own, as second names of the same bytes where the file system can.
 *
 * <p>{@link #features} is for several threads; the rest for one.
 */
public final class Encoder implements AutoCloseable {
  private static final String MODEL = "encoder.onnx";
  private static final String TOKENIZER =
      "encoder-tokenizer.json"; // found beside the model by its name
  private static final String SETTINGS = "encoder.json";
  private static final Set<String> FILES = Set.of(MODEL, TOKENIZER, SETTINGS);

  private static final int MOST_SETTINGS = 10_000;

  private static final JsonMapper JSON =
      JsonMapper.builder()
          .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .build();

  private final Path model;
  private final Path tokenizer;
  private final Settings settings;
  private final TextFeatures features;

  /** The SHA-256 of each file, by its name in a version. */
  private final Map<String, String> sums;

  /** The version that has the files; null while they are somebody's own. */
  private ModelStore.Held held;

  private Encoder(
      Path model,
      Path tokenizer,
      Settings settings,
      Map<String, String> sums,
      ModelStore.Held held) {
    if (OnnxModel.read(model).files().size() > 1) {
      throw new InputException(
          model + " has weights in other files; an encoder has all of it in one, of 2 GiB at most");
    }
    this.model = model;
    this.tokenizer = tokenizer;
    this.settings = settings;
    this.sums = sums;
    this.held = held;
    features = new TextFeatures(model, tokenizer, settings.maxTokens(), settings.pooling());
  }

  /** How texts become features, beside the model and the tokenizer. */
  private record Settings(int maxTokens, Pooling pooling) {
    /**
     * Reads the settings of a version.
     *
     * @throws InputException if they are none
     */
    static Settings read(Path file) {
      JsonNode json = json(file);
      JsonNode maxTokens = json.path("max_tokens");
      JsonNode pooling = json.path("pooling");
      boolean whole = maxTokens.isIntegralNumber() && maxTokens.canConvertToInt();
      if (json.size() != 2
          || !whole
          || maxTokens.intValue() < TextTokenizer.LEAST_TOKENS
          || maxTokens.intValue() > TextTokenizer.MOST_TOKENS
          || !pooling.isTextual()) {
        throw new InputException(
            file
                + " holds other settings than max_tokens, "
                + TextTokenizer.LEAST_TOKENS
                + " to "
                + TextTokenizer.MOST_TOKENS
                + ", and pooling, mean or cls");
      }
      try {
        return new Settings(maxTokens.intValue(), Pooling.parse(pooling.textValue()));
      } catch (InputException e) {
        throw new InputException(file + ": " + e.getMessage(), e);
      }
    }

    private static JsonNode json(Path file) {
      try {
        return JSON.readTree(InputFile.bytes(file, MOST_SETTINGS));
      } catch (JsonProcessingException e) {
        throw new InputException(file + " is not JSON: " + JsonReason.of(e), e);
      } catch (IOException e) {
        throw InputException.of("cannot read " + file, e);
      }
    }

    byte[] bytes() {
      try {
        return JSON.writeValueAsBytes(
            JSON.createObjectNode()
                .put("max_tokens", maxTokens)
                .put("pooling", pooling.toString()));
      } catch (JsonProcessingException e) {
        throw new IllegalStateException("what was made here is JSON", e);
      }
    }
  }

  /**
   * Opens an encoder.
   *
   * @param model an ONNX file that takes token ids and gives hidden states [batch, tokens, width] or embeddings [batch,
   *     width]
   * @param tokenizer its {@code tokenizer.json}
   * @param maxTokens texts are cut after so many, special ones included; from 3 on
   * @throws InputException if either is none, or the model does not run on texts
   */
  public static Encoder open(Path model, Path tokenizer, int maxTokens, Pooling pooling) {
    Settings settings = new Settings(maxTokens, pooling);
    Map<String, String> sums;
    try {
      sums =
          Map.of(
              MODEL, sum(Sha256.of(model)),
              TOKENIZER, sum(Sha256.of(tokenizer)),
              SETTINGS, sum(Sha256.digest().digest(settings.bytes())));
    } catch (IOException e) {
      throw InputException.of("cannot read the encoder " + model, e);
    }
    return new Encoder(model, tokenizer, settings, sums, null);
  }

  private static String sum(byte[] digest) {
    return HexFormat.of().formatHex(digest);
  }

  /** Whether a version has an encoder. */
  public static boolean isIn(Version version) {
    return version.files().stream().anyMatch(f -> f.path().equals(MODEL));
  }

  /**
   * Opens the encoder of a version, which is not collected while it is open.
   *
   * @return null where the version has none
   * @throws InputException if its files are no encoder
   */
  public static Encoder of(ModelStore store, Version version) {
    if (!isIn(version)) {
      return null;
    }
    ModelStore.Held held = store.hold(version.id());
    try {
      Path model = held.file(MODEL);
      Path tokenizer = held.file(TOKENIZER);
      Settings settings = Settings.read(held.file(SETTINGS));
      Map<String, String> sums =
          version.files().stream()
              .filter(f -> FILES.contains(f.path()))
              .collect(Collectors.toMap(Version.StoredFile::path, Version.StoredFile::sha256));
      return new Encoder(model, tokenizer, settings, sums, held);
    } catch (RuntimeException e) {
      held.close();
      throw e;
    }
  }

  /** The file of its tokenizer. */
  public Path tokenizer() {
    return tokenizer;
  }

  /** How many features a text has. */
  public int width() {
    return features.width();
  }

  /**
   * The features of a text, of length 1 together, which depend on the text alone.
   *
   * @throws InputException where the tokenizer or the model does not take the text
   */
  public float[] features(String text) {
    return features.of(text);
  }

  /** Whether a version has this encoder. */
  public boolean isOf(Version version) {
    return version.files().stream().filter(f -> f.sha256().equals(sums.get(f.path()))).count()
        == sums.size();
  }

  /**
   * Writes its files into a version of the store that it is of, or of any where it is of none.
   *
   * @throws InputException if they were changed since they were read
   */
  public void write(StoreWriter.NewVersion files) {
    if (held != null) {
      sums.keySet().forEach(name -> files.share(held, name));
      return;
    }
    files.copy(model, MODEL, sums.get(MODEL));
    files.copy(tokenizer, TOKENIZER, sums.get(TOKENIZER));
    files.write(SETTINGS, ByteBuffer.wrap(settings.bytes()));
  }

  /** Finds its files in the current version of a store, with which later ones share them then. */
  public void findIn(ModelStore store) {
    if (held != null || store.current().isEmpty()) {
      return;
    }
    try {
      Version current = store.version(store.current().getAsLong());
      if (isOf(current)) {
        held = store.hold(current.id());
      }
    } catch (InputException e) {
      // It is damaged, or was collected meanwhile: the files are copied.
    }
  }

  /** Says that a version has its files: later ones share them with it. */
  public void publishedIn(ModelStore store, Version version) {
    if (held == null) {
      held = store.hold(version.id());
    }
  }

  /**
   * Refuses a model that does not read what the encoder makes.
   *
   * @throws InputException that says why
   */
  public void requireFits(Learnable model) {
    List<ExampleInput> inputs = model.inputs();
    if (inputs.size() > 1 || !inputs.get(0).isOfFloats()) {
      throw new InputException(
          "features of texts are read by one input of floats; the model has "
              + inputs.stream().map(i -> i.name() + " of " + i.type()).toList());
    }
    if (model.features() != width()) {
      throw new InputException(
          "the model takes "
              + model.features()
              + " features, and the encoder makes "
              + width()
              + " of a text");
    }
  }

  /**
   * A model that takes what the encoder takes and gives what another makes of its features.
   *
   * @param head of one input, whose values are the features
   * @throws InputException where no model can be both
   */
  public OnnxModel followedBy(OnnxModel head) {
    OnnxModel following = head.copy();
    OnnxModel encoder = readBefore(following);
    Pooling pooling = features.isOfTokens() ? settings.pooling() : null;
    String made = EncoderGraph.addFeatures(encoder, pooling, following.inputs().get(0));
    return JoinedModel.of(encoder, made, following);
  }

  /**
   * Refuses a model that {@link #followedBy} does not take.
   *
   * @throws InputException that says why
   */
  public void requireCanBeFollowedBy(OnnxModel head) {
    OnnxModel following = head.copy();
    JoinedModel.check(readBefore(following), following);
  }

  /** The encoder's graph; where the two are of different operator sets, both are raised as far as that is known. */
  private OnnxModel readBefore(OnnxModel following) {
    OnnxModel encoder = OnnxModel.read(model);
    if (encoder.opset("") != following.opset("")) {
      OpsetUpgrade.raise(encoder, OpsetUpgrade.TARGET);
      OpsetUpgrade.raise(following, OpsetUpgrade.TARGET);
    }
    return encoder;
  }

  /** Waits for texts whose features are being made. */
  @Override
  public void close() {
    features.close();
    if (held != null) {
      held.close();
    }
  }
}
