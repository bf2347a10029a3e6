package org.espalier.encoder;

import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.Base64;
import java.util.HexFormat;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.compress.onnx.OpsetUpgrade;
import org.espalier.evaluate.EncodedImages;
import org.espalier.evaluate.EncoderFeatures;
import org.espalier.evaluate.ImageFeatures;
import org.espalier.evaluate.PixelFeatures;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.TextFeatures;
import org.espalier.format.Sha256;
import org.espalier.format.onnx.JoinedModel;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.TextInput;
import org.espalier.image.ImageInput;
import org.espalier.image.ImageProcessor;
import org.espalier.online.ExampleInput;
import org.espalier.online.ExampleLines;
import org.espalier.online.Learnable;
import org.espalier.store.ModelStore;
import org.espalier.store.StoreWriter;
import org.espalier.store.Version;

/**
 * A fixed encoder of texts or images in front of what learns: it makes the features that are learned from. Or, where what learns takes
 * images itself, how these become its values, with no model in front. Each version of what learns has its files beside its own,
 * as second names of the same bytes where the file system can.
 *
 * <p>{@link #features} is for several threads; the rest for one.
 */
public final class Encoder implements AutoCloseable {
  private static final String MODEL = "encoder.onnx";
  private static final String TOKENIZER =
      "encoder-tokenizer.json"; // found beside the model by its name
  private static final String PROCESSOR = "encoder-" + ImageProcessor.FILE_NAME;
  private static final String SETTINGS = "encoder.json";
  private static final Set<String> FILES = Set.of(MODEL, TOKENIZER, PROCESSOR, SETTINGS);

  /** How a URL begins that holds what it stands for (RFC 2397). */
  private static final String DATA = "data:";

  /** Its model; null of pixels. */
  private final Path model;

  /** The file that says how what it encodes becomes tensors: a tokenizer, or an image processor. */
  private final Path inputs;

  /** Null of pixels. */
  private final EncoderSettings settings;

  private final EncoderFeatures features;

  /** The SHA-256 of each file, by its name in a version. */
  private final Map<String, String> sums;

  /** The version that has the files; null while they are somebody's own. */
  private ModelStore.Held held;

  private Encoder(
      Path model,
      Path inputs,
      EncoderSettings settings,
      Map<String, String> sums,
      ModelStore.Held held) {
    this(model, inputs, settings, features(model, inputs, settings), sums, held);
  }

  private Encoder(
      Path model,
      Path inputs,
      EncoderSettings settings,
      EncoderFeatures features,
      Map<String, String> sums,
      ModelStore.Held held) {
    this.model = model;
    this.inputs = inputs;
    this.settings = settings;
    this.features = features;
    this.sums = sums;
    this.held = held;
  }

  private static EncoderFeatures features(Path model, Path inputs, EncoderSettings settings) {
    if (OnnxModel.read(model).files().size() > 1) {
      throw new InputException(
          model + " has weights in other files; an encoder has all of it in one, of 2 GiB at most");
    }
    return settings.isOfTexts()
        ? new TextFeatures(model, inputs, settings.maxTokens(), settings.pooling())
        : new EncodedImages(model, ImageProcessor.read(inputs), settings.pooling());
  }

  /**
   * Whether a model encodes texts, which come to it as tokens; else images.
   *
   * @throws InputException if it takes neither
   */
  public static boolean takesTexts(OnnxModel model) {
    String ids = TextInput.INPUT_IDS.inputName();
    if (model.inputs().stream().anyMatch(input -> input.getName().equals(ids))) {
      return true;
    }
    try {
      ImageInput.of(model.inputs());
      return false;
    } catch (InputException e) {
      throw new InputException(
          model.name() + " takes no texts (it has no " + ids + ") and no images: " + e.getMessage(),
          e);
    }
  }

  /**
   * Opens an encoder of texts.
   *
   * @param model an ONNX file that takes token ids and gives hidden states [batch, tokens, width] or embeddings [batch,
   *     width]
   * @param tokenizer its {@code tokenizer.json}
   * @param maxTokens texts are cut after so many, special ones included; from 3 on
   * @throws InputException if either is none, or the model does not run on texts
   */
  public static Encoder ofTexts(Path model, Path tokenizer, int maxTokens, Pooling pooling) {
    return open(model, tokenizer, new EncoderSettings(maxTokens, pooling));
  }

  /**
   * Opens an encoder of images.
   *
   * @param model an ONNX file as {@link EncodedImages} takes it
   * @param processor its {@code preprocessor_config.json}
   * @throws InputException if either is none, or {@code pooling} is of texts alone
   */
  public static Encoder ofImages(Path model, Path processor, Pooling pooling) {
    if (pooling == Pooling.LAST) {
      throw new InputException("pooling last is of texts; the encoder takes images");
    }
    return open(model, processor, new EncoderSettings(0, pooling));
  }

  /**
   * No encoder: how images become the values that a model takes which learns itself.
   *
   * @param learned the file of that model, ONNX or TorchScript
   * @param processor its {@code preprocessor_config.json}
   * @throws InputException if the model takes no images, or the processor makes others
   */
  public static Encoder ofPixels(Path learned, Path processor) {
    try {
      return ofPixels(learned, processor, Map.of(PROCESSOR, sum(Sha256.of(processor))), null);
    } catch (IOException e) {
      throw InputException.of("cannot read " + processor, e);
    }
  }

  private static Encoder ofPixels(
      Path learned, Path processor, Map<String, String> sums, ModelStore.Held held) {
    ImageInput input =
        learned.toString().endsWith(".onnx")
            ? ImageInput.of(OnnxModel.read(learned).inputs())
            : ImageInput.OF_MODULES;
    return new Encoder(
        null,
        processor,
        null,
        new PixelFeatures(ImageProcessor.read(processor), input),
        sums,
        held);
  }

  private static Encoder open(Path model, Path inputs, EncoderSettings settings) {
    Map<String, String> sums;
    try {
      sums =
          Map.of(
              MODEL,
              sum(Sha256.of(model)),
              inputs(settings),
              sum(Sha256.of(inputs)),
              SETTINGS,
              sum(Sha256.digest().digest(settings.bytes())));
    } catch (IOException e) {
      throw InputException.of("cannot read the encoder " + model, e);
    }
    return new Encoder(model, inputs, settings, sums, null);
  }

  /** The name of the file in a version that says how what is encoded becomes tensors. */
  private static String inputs(EncoderSettings settings) {
    return settings != null && settings.isOfTexts() ? TOKENIZER : PROCESSOR;
  }

  private static String sum(byte[] digest) {
    return HexFormat.of().formatHex(digest);
  }

  /** Whether a version has an encoder. */
  public static boolean isIn(Version version) {
    return sums(version).containsKey(MODEL);
  }

  /** The SHA-256 of the files of an encoder that a version has. */
  private static Map<String, String> sums(Version version) {
    return version.files().stream()
        .filter(f -> FILES.contains(f.path()))
        .collect(Collectors.toMap(Version.StoredFile::path, Version.StoredFile::sha256));
  }

  /**
   * Opens the encoder of a version, which is not collected while it is open.
   *
   * @return null where the version has none
   * @throws InputException if its files are no encoder
   */
  public static Encoder of(ModelStore store, Version version) {
    Map<String, String> sums = sums(version);
    if (sums.isEmpty()) {
      return null;
    }
    ModelStore.Held held = store.hold(version.id());
    try {
      if (sums.keySet().equals(Set.of(PROCESSOR))) {
        return ofPixels(held.model(), held.file(PROCESSOR), sums, held);
      }
      EncoderSettings settings =
          EncoderSettings.read(held.file(SETTINGS), sums.containsKey(TOKENIZER));
      return new Encoder(held.file(MODEL), held.file(inputs(settings)), settings, sums, held);
    } catch (RuntimeException e) {
      held.close();
      throw e;
    }
  }

  /** Whether it encodes texts; else images. */
  public boolean isOfTexts() {
    return features instanceof TextFeatures;
  }

  /** Whether there is no model, and what learns takes the values of images itself. */
  public boolean isOfPixels() {
    return features instanceof PixelFeatures;
  }

  /** The file that says how what it encodes becomes tensors: a tokenizer, or an image processor. */
  public Path inputsFile() {
    return inputs;
  }

  /** What such a file is called beside a model. */
  public String inputsName() {
    return inputs(settings).substring("encoder-".length());
  }

  /** How many features a text or an image has. */
  public int width() {
    return features.width();
  }

  /**
   * The features of a text, or of an image that a URL holds, {@code data:image/jpeg;base64,…}; of length 1 together, and
   * depending on it alone.
   *
   * @throws InputException where the encoder does not take it
   */
  public float[] features(String value) {
    if (features instanceof TextFeatures texts) {
      return texts.of(value, null);
    }
    if (!isData(value)) {
      throw new InputException("image is not a URL with its data, " + DATA + "image/jpeg;base64,…");
    }
    return ((ImageFeatures) features).of(data(value), "in the URL");
  }

  /**
   * The same of a file.
   *
   * @throws InputException where it is no image that the encoder takes
   * @throws IllegalStateException for an encoder of texts
   */
  public float[] features(Path image) {
    if (features instanceof ImageFeatures images) {
      return images.of(image);
    }
    throw new IllegalStateException("the encoder is one of texts");
  }

  /**
   * The same of two texts that the encoder reads as one.
   *
   * @param second null for one text alone
   * @throws InputException where the tokenizer or the model does not take them
   * @throws IllegalStateException for an encoder of images
   */
  public float[] features(String text, String second) {
    if (features instanceof TextFeatures texts) {
      return texts.of(text, second);
    }
    throw new IllegalStateException("the encoder is one of images");
  }

  private static boolean isData(String image) {
    return image.regionMatches(true, 0, DATA, 0, DATA.length());
  }

  private static byte[] data(String url) {
    int comma = url.indexOf(',');
    if (comma < 0 || !url.substring(0, comma).toLowerCase(Locale.ROOT).endsWith(";base64")) {
      throw new InputException("image has no data in base64, " + DATA + "image/jpeg;base64,…");
    }
    // Lines are broken by some encoders, and some write the two last digits as URLs need them.
    String digits =
        url.substring(comma + 1).replaceAll("\\s", "").replace('-', '+').replace('_', '/');
    try {
      return Base64.getDecoder().decode(digits);
    } catch (IllegalArgumentException e) {
      throw new InputException("image has data that is not base64: " + e.getMessage(), e);
    }
  }

  /**
   * How lines or requests have what it encodes.
   *
   * @param folder where paths of images begin; null where images are not read from files, as of requests
   */
  public ExampleLines.Encoded encoded(Path folder) {
    if (isOfTexts()) {
      return new ExampleLines.Encoded("text", "text_pair", this::features);
    }
    return new ExampleLines.Encoded(
        "image",
        null,
        (value, none) ->
            folder == null || isData(value) ? features(value) : features(path(folder, value)));
  }

  private static Path path(Path folder, String image) {
    try {
      return folder.resolve(image);
    } catch (InvalidPathException e) {
      throw new InputException(
          "image is neither a path nor a URL with its data, " + DATA + "image/jpeg;base64,…", e);
    }
  }

  /** Whether a version has this encoder. */
  public boolean isOf(Version version) {
    return sums(version).equals(sums);
  }

  /**
   * Whether a version can be gone on with behind this: it has this encoder, or, of pixels, says nothing of how images become
   * these.
   */
  public boolean isBefore(Version version) {
    return isOf(version) || isOfPixels() && sums(version).isEmpty();
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
    if (!isOfPixels()) {
      files.copy(model, MODEL, sums.get(MODEL));
      files.write(SETTINGS, ByteBuffer.wrap(settings.bytes()));
    }
    files.copy(inputs, inputs(settings), sums.get(inputs(settings)));
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
          "features of an encoder are read by one input of floats; the model has "
              + inputs.stream().map(i -> i.name() + " of " + i.type()).toList());
    }
    if (model.features() != width()) {
      throw new InputException(
          "the model takes "
              + model.features()
              + " features, and the encoder makes "
              + width()
              + " of each text or image");
    }
  }

  /**
   * A model that takes what the encoder takes and gives what another makes of its features.
   *
   * @param head of one input, whose values are the features
   * @throws InputException where no model can be both
   */
  public OnnxModel followedBy(OnnxModel head) {
    if (isOfPixels()) {
      return head;
    }
    OnnxModel following = head.copy();
    OnnxModel encoder = readBefore(following);
    ValueInfoProto read = following.inputs().get(0);
    String made;
    if (features instanceof TextFeatures texts) {
      Pooling pooling = texts.isOfTokens() ? settings.pooling() : null;
      made = EncoderGraph.addFeatures(encoder, graph -> graph.ofTexts(pooling), read);
    } else {
      EncodedImages images = (EncodedImages) features;
      made =
          EncoderGraph.addFeatures(
              encoder, graph -> graph.ofImages(images, settings.pooling()), read);
    }
    return JoinedModel.of(encoder, made, following);
  }

  /**
   * Refuses a model that {@link #followedBy} does not take.
   *
   * @throws InputException that says why
   */
  public void requireCanBeFollowedBy(OnnxModel head) {
    if (!isOfPixels()) {
      OnnxModel following = head.copy();
      JoinedModel.check(readBefore(following), following);
    }
  }

  /** The encoder's graph; where the two are of different operator sets, both are raised as far as that is known. */
  private OnnxModel readBefore(OnnxModel following) {
    OnnxModel encoder = OnnxModel.read(model);
    boolean old = settings.pooling() == Pooling.LAST && encoder.opset("") < EncoderGraph.OF_LAST;
    if (old || encoder.opset("") != following.opset("")) {
      OpsetUpgrade.raise(encoder, OpsetUpgrade.TARGET);
      OpsetUpgrade.raise(following, OpsetUpgrade.TARGET);
    }
    return encoder;
  }

  /** Waits for features that are being made. */
  @Override
  public void close() {
    features.close();
    if (held != null) {
      held.close();
    }
  }
}
