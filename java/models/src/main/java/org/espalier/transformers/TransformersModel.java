package org.espalier.transformers;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.BiFunction;
import java.util.function.Consumer;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.Checkpoint;

/**
 * Reads checkpoints as Hugging Face's Transformers writes them, a folder with {@code config.json} and safetensors, as ONNX
 * models. Numbers are computed in float32, whatever type the tensors have; nothing of a folder is run.
 */
public final class TransformersModel {
  /** The file of a folder that says what is computed. */
  public static final String CONFIGURATION = Configuration.FILE;

  /** What outputs are called that are embeddings of texts, [batch, width]. */
  public static final Set<String> EMBEDDINGS =
      Set.of(SentenceEmbedding.OUTPUT, ClipTextEncoder.EMBEDDING);

  /** One part of a model of two: of two encoders, or of an encoder and a decoder that answers. */
  public enum Part {
    TEXT,
    IMAGE,
    ENCODER,
    DECODER
  }

  private static final List<String> PROJECTS = List.of(ClipImageEncoder.PROJECTS);

  private static final Map<String, Architecture> KNOWN =
      new TreeMap<>(
          Map.ofEntries(
              encoder("bert", BertEncoder::new),
              encoder("camembert", BertEncoder.Roberta::new),
              encoder("clip_text_model", ClipTextEncoder::new),
              encoder("clip_vision_model", ClipImageEncoder::new),
              encoder("deberta-v2", DebertaEncoder::new),
              encoder("deit", VisionEncoder.Deit::new),
              encoder("dinov2", Dinov2Encoder::new),
              encoder("dinov2_with_registers", Dinov2Encoder.WithRegisters::new),
              encoder("distilbert", BertEncoder.DistilBert::new),
              encoder("electra", BertEncoder.Electra::new),
              encoder("modernbert", ModernBertEncoder::new),
              encoder("mpnet", BertEncoder.MpNet::new),
              encoder("roberta", BertEncoder.Roberta::new),
              encoder("siglip_text_model", SiglipTextEncoder::new),
              encoder("siglip_vision_model", SiglipImageEncoder::new),
              encoder("vit", VisionEncoder::new),
              encoder("xlm-roberta", BertEncoder.Roberta::new),
              decoder("gemma", GemmaDecoder::new),
              decoder("gemma2", GemmaDecoder.Gemma2::new),
              decoder("gemma3_text", GemmaDecoder.Gemma3::new),
              decoder("gpt2", Gpt2Decoder::new),
              decoder("granite", LlamaDecoder.Granite::new),
              decoder("llama", LlamaDecoder::new),
              decoder("mistral", LlamaDecoder.Mistral::new),
              decoder("mixtral", MixtureDecoder.Mixtral::new),
              decoder("olmo2", LlamaDecoder.Olmo2::new),
              decoder("phi3", Phi3Decoder::new),
              decoder("qwen2", LlamaDecoder.Qwen2::new),
              decoder("qwen2_moe", MixtureDecoder.Qwen2::new),
              decoder("qwen3", LlamaDecoder.Qwen3::new),
              decoder("qwen3_moe", MixtureDecoder.Qwen3::new),
              decoder("smollm3", LlamaDecoder.SmolLm3::new)));

  /** How a part of an encoder and a decoder is made. */
  private interface Kind {
    EncoderDecoder of(Configuration config, GraphWriter graph, Part part);
  }

  /** Models of two parts: encoders that read into one space, or an encoder and a decoder. */
  private static final Map<String, Map<Part, Architecture>> OF_TWO =
      Map.of(
          "bart",
          both(BartModel::new),
          "mbart",
          both(BartModel.MBart::new),
          "marian",
          both(MarianModel::new),
          "mt5",
          both(T5Model::new),
          "whisper",
          both(WhisperModel::new),
          "t5",
          both(T5Model::new),
          "clip",
          Map.of(
              Part.TEXT,
              (config, graph, classes) ->
                  new ClipTextEncoder(clipPart(config, "text_config"), graph).write(PROJECTS),
              Part.IMAGE,
              (config, graph, classes) ->
                  new ClipImageEncoder(clipPart(config, "vision_config"), graph)
                      .write(Encoder.names(classes, ImageEncoder.CLASSIFIES) ? classes : PROJECTS)),
          "siglip",
          Map.of(
              Part.TEXT,
              (config, graph, classes) ->
                  new SiglipTextEncoder(config.part("text_config"), graph).write(classes),
              Part.IMAGE,
              (config, graph, classes) ->
                  new SiglipImageEncoder(
                          config.part("vision_config").with("num_labels", config.labels()), graph)
                      .write(classes)));

  /** What checkpoints hold that follows from the configuration. */
  private static final Set<String> COMPUTED =
      Set.of("position_ids", "token_type_ids", "inv_freq", "bias_mask");

  /** How the name of a class ends that gives the states of tokens. */
  private static final String STATES = "Model";

  /** How the name of a class ends that has a head. */
  private static final Pattern HEAD = Pattern.compile("(For[A-Z]\\w*|LMHeadModel)$");

  private TransformersModel() {}

  private static Map.Entry<String, Architecture> encoder(
      String type, BiFunction<Configuration, GraphWriter, Encoder> kind) {
    return Map.entry(type, (config, graph, classes) -> kind.apply(config, graph).write(classes));
  }

  private static Map.Entry<String, Architecture> decoder(
      String type, BiFunction<Configuration, GraphWriter, Decoder> kind) {
    return Map.entry(type, (config, graph, classes) -> kind.apply(config, graph).write(classes));
  }

  private static Map<Part, Architecture> both(Kind kind) {
    return Map.of(
        Part.ENCODER,
        (config, graph, classes) -> kind.of(config, graph, Part.ENCODER).write(classes),
        Part.DECODER,
        (config, graph, classes) -> kind.of(config, graph, Part.DECODER).write(classes));
  }

  private static Configuration clipPart(Configuration config, String key) {
    return config
        .part(key)
        .with("projection_dim", config.size("projection_dim", 512))
        .with("num_labels", config.labels());
  }

  /** Whether a path is a folder with a configuration. */
  public static boolean isOne(Path folder) {
    return Files.isRegularFile(folder.resolve(Configuration.FILE));
  }

  /** The values of {@code model_type} that can be read. */
  public static Set<String> types() {
    Set<String> types = new TreeSet<>(KNOWN.keySet());
    types.addAll(OF_TWO.keySet());
    return types;
  }

  /**
   * Reads a model. The data of its tensors stays in the folder's files, which must not change while it is used. Where
   * {@code modules.json} says that states are pooled, the model gives these, whatever head it has; where linear layers
   * follow ({@link SentenceModules#head}), {@code sentence_embedding}, [batch, width].
   *
   * @param notes receives a line for people about tensors that the model does not use, and about what is computed of them
   * @throws org.espalier.InputException if a file is missing or invalid, or the model is none that can be read, which says
   *     why
   */
  public static OnnxModel read(Path folder, Consumer<String> notes) {
    return read(folder, null, notes);
  }

  /**
   * The same of one part of a model.
   *
   * @param part which, of a model that is two; else null
   */
  public static OnnxModel read(Path folder, Part part, Consumer<String> notes) {
    Configuration config = Configuration.read(folder);
    WeightLayout layout = WeightLayout.of(config);
    String type = config.choice("model_type", "", types());
    List<String> classes = config.texts("architectures");
    Path file = folder.resolve(SentenceModules.FILE);
    SentenceModules modules = Files.isRegularFile(file) ? SentenceModules.read(file) : null;
    boolean embeds = modules != null && !modules.head().isEmpty();
    if (modules != null && modules.pooling() != null) {
      List<String> given = classes;
      classes = withoutHeads(given);
      if (!given.isEmpty() && !classes.equals(given)) {
        notes.accept(
            file
                + " pools the states of tokens: "
                + (embeds ? "embeddings of texts come out" : "these come out")
                + ", without the head that "
                + String.join(", ", given)
                + " has");
      }
    }
    Architecture architecture = architecture(config, type, classes, part);
    try (Checkpoint checkpoint = Checkpoint.open(folder)) {
      CheckpointTensors tensors = new CheckpointTensors(checkpoint);
      GraphWriter graph = new GraphWriter(tensors, layout);
      architecture.write(config, graph, classes);
      if (embeds && !new SentenceEmbedding(graph, folder).write(modules)) {
        throw new InputException(
            file
                + " has linear layers behind pooled states of tokens, and the model of "
                + config.place()
                + " gives no states of tokens");
      }
      graph.told().forEach(notes);
      Set<String> unused =
          tensors.left().stream()
              .filter(name -> !COMPUTED.contains(name.substring(name.lastIndexOf('.') + 1)))
              .collect(Collectors.toSet());
      if (!unused.isEmpty()) {
        notes.accept(
            unused.size()
                + (unused.size() == 1 ? " tensor of " : " tensors of ")
                + folder
                + (unused.size() == 1 ? " is" : " are")
                + " not part of what "
                + (part == null ? "" : "the " + part.name().toLowerCase(Locale.ROOT) + " part of ")
                + (classes.isEmpty() ? type : String.join(", ", classes))
                + " computes here and left out ("
                + NearNames.list("", unused)
                + ")");
      }
      return graph.model();
    }
  }

  /** The classes of the same models that give the states of tokens. */
  private static List<String> withoutHeads(List<String> classes) {
    return classes.isEmpty()
        ? List.of(STATES)
        : classes.stream().map(name -> HEAD.matcher(name).replaceFirst(STATES)).toList();
  }

  private static Architecture architecture(
      Configuration config, String type, List<String> classes, Part part) {
    Map<Part, Architecture> parts = OF_TWO.get(type);
    if (parts == null && part != null) {
      throw new InputException(
          config.place()
              + " is of one model (model_type "
              + type
              + "), which has no parts; --part is for "
              + String.join(", ", new TreeSet<>(OF_TWO.keySet())));
    }
    if (parts == null) {
      return KNOWN.get(type);
    }
    Part which = part == null ? only(classes) : part;
    if (which == null || !parts.containsKey(which)) {
      boolean answers = parts.containsKey(Part.DECODER);
      throw new InputException(
          config.place()
              + (answers ? " is of an encoder and a decoder" : " is of two encoders")
              + " (model_type "
              + type
              + ")"
              + (answers ? "" : ", of texts and of images")
              + "; 'espalier export' makes one ONNX model of either, by "
              + (answers ? "--part encoder or --part decoder" : "--part text or --part image"));
    }
    return parts.get(which);
  }

  /** The part that alone a class of models is; null where it is both. */
  private static Part only(List<String> classes) {
    if (Encoder.names(classes, ImageEncoder.CLASSIFIES)) {
      return Part.IMAGE;
    }
    return Encoder.names(classes, EncoderDecoder.ENCODES) ? Part.ENCODER : null;
  }
}
