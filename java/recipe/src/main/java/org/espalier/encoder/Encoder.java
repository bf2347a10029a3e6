package org.espalier.encoder;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.util.HexFormat;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.TextFeatures;
import org.espalier.format.InputFile;
import org.espalier.format.JsonReason;
import org.espalier.format.Sha256;
import org.espalier.format.onnx.JoinedModel;
import org.espalier.format.onnx.OnnxModel;
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

  private static final int MOST_SETTINGS = 10_000;

  private static final JsonMapper JSON =
      JsonMapper.builder()
          .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .build();

  private final Path model;
  private final Path tokenizer;
  private final byte[] settings;
  private final Pooling pooling;
  private final TextFeatures features;

  /** The SHA-256 of each file, by its name in a version. */
  private final Map<String, String> sums;

  /** The version that has the files; null while they are somebody's own. */
  private ModelStore.Held held;

  private Encoder(
      Path model, Path tokenizer, int maxTokens, Pooling pooling, ModelStore.Held held) {
    if (OnnxModel.read(model).files().size() > 1) {
      throw new InputException(
          model + " has weights in other files; an encoder has all of it in one, of 2 GiB at most");
    }
    this.model = model;
    this.tokenizer = tokenizer;
    this.pooling = pooling;
    this.held = held;
    try {
      settings =
          JSON.writeValueAsBytes(
              JSON.createObjectNode()
                  .put("max_tokens", maxTokens)
                  .put("pooling", pooling.toString()));
      sums =
          Map.of(
              MODEL, sum(Sha256.of(model)),
              TOKENIZER, sum(Sha256.of(tokenizer)),
              SETTINGS, sum(Sha256.digest().digest(settings)));
    } catch (IOException e) {
      throw InputException.of("cannot read the encoder " + model, e);
    }
    features = new TextFeatures(model, tokenizer, maxTokens, pooling);
  }

  private static String sum(byte[] digest) {
    return HexFormat.of().formatHex(digest);
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
    return new Encoder(model, tokenizer, maxTokens, pooling, null);
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
      JsonNode settings = settings(held.file(SETTINGS));
      int maxTokens = settings.path("max_tokens").asInt();
      if (maxTokens < 3 || !settings.path("pooling").isTextual()) {
        throw new InputException(
            held.file(SETTINGS) + " needs max_tokens from 3 on and pooling, mean or cls");
      }
      Pooling pooling = Pooling.parse(settings.path("pooling").textValue());
      return new Encoder(held.file(MODEL), held.file(TOKENIZER), maxTokens, pooling, held);
    } catch (RuntimeException e) {
      held.close();
      throw e;
    }
  }

  private static JsonNode settings(Path file) {
    try {
      return JSON.readTree(InputFile.bytes(file, MOST_SETTINGS));
    } catch (JsonProcessingException e) {
      throw new InputException(file + " is not JSON: " + JsonReason.of(e), e);
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
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
    try (FileChannel channel = files.create(SETTINGS)) {
      ByteBuffer bytes = ByteBuffer.wrap(settings);
      while (bytes.hasRemaining()) {
        channel.write(bytes);
      }
    } catch (IOException e) {
      throw files.failure(SETTINGS, e);
    }
  }

  /** Says that a version has its files: later ones share them with it. */
  public void publishedIn(ModelStore store, Version version) {
    if (held == null) {
      held = store.hold(version.id());
    }
  }

  /**
   * A model that takes what the encoder takes and gives what another makes of its features.
   *
   * @param head of one input [batch, {@link #width}]
   * @throws InputException where no model can be both
   */
  public OnnxModel followedBy(OnnxModel head) {
    OnnxModel encoder = OnnxModel.read(model);
    String made = EncoderGraph.addFeatures(encoder, features.isOfTokens() ? pooling : null);
    return JoinedModel.of(encoder, made, head);
  }

  @Override
  public void close() {
    features.close();
    if (held != null) {
      held.close();
    }
  }
}
