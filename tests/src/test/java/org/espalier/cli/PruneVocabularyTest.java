package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.espalier.ExactProducts;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.transformers.SmallCheckpoint;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Models of a language of 40 words, of whose texts some have ten. */
class PruneVocabularyTest {
  /** The words, and one for all that is unknown. */
  private static final int LEFT = 11;

  @TempDir private Path folder;
  private Path checkpoint;
  private Path texts;

  @BeforeEach
  void makeTexts() throws IOException {
    checkpoint = Files.createDirectory(folder.resolve("checkpoint"));
    SmallLanguage.write(checkpoint);
    texts = folder.resolve("texts.txt");
    Files.write(
        texts, List.of("w3 w4 w30 w31 w32", "w33 w34 w35 w36", "w39 w3 w3 w39 w30 w4", "w36 w31"));
  }

  /** The folder's model, as ONNX, and without the words that the texts do not have. */
  private Path prune(Path model, Path out) {
    JsonNode json = Run.of("prune", model, "-o", out, "--vocabulary", texts, "--json").json();
    assertEquals(SmallLanguage.VOCABULARY, json.at("/vocabulary/before").asInt());
    assertEquals(LEFT, json.at("/vocabulary/after").asInt());
    assertEquals(LEFT - 1, json.at("/vocabulary/seen").asInt());
    assertEquals(4, json.at("/vocabulary/texts").asInt());
    return out;
  }

  /** The outputs are compared before anything is written. */
  @ParameterizedTest
  @CsvSource({"llama", "gpt2", "gemma3_text"})
  void languageModelsLoseWords(String type) throws IOException {
    if (type.equals("llama")) {
      SmallCheckpoint.writeLanguageModel(checkpoint, SmallLanguage.VOCABULARY);
    } else {
      SmallCheckpoint.writeLanguageModel(checkpoint, type);
    }
    Path out = prune(checkpoint, folder.resolve("few.onnx"));
    OnnxModel model = OnnxModel.read(out);
    assertTrue(
        model.initializers().stream()
            .allMatch(i -> i.dims().length < 2 || i.dims()[0] != SmallLanguage.VOCABULARY));
    JsonNode fidelity =
        Run.of(
                "evaluate",
                out,
                out,
                "--texts",
                texts,
                "--tokenizer",
                folder.resolve("few-tokenizer.json"),
                "--json")
            .json();
    assertEquals(4, fidelity.path("texts").asInt(), fidelity.toString());
  }

  @ParameterizedTest
  @CsvSource({"mpnet", "modernbert"})
  void encodersLoseWordsAndGiveTheSame(String type) throws IOException {
    SmallCheckpoint.writeTextEncoder(checkpoint, type);
    Path out = prune(checkpoint, folder.resolve("few.onnx"));
    Run run = Run.of("evaluate", checkpoint, out, "--texts", texts, "--json").done();
    assertTrue(run.err().contains("few-tokenizer.json"), run.err());
    assertEquals(1, run.json().path("cosine_min").asDouble(), 1e-6);
    // What is made of it reads its tokenizer, though another lies beside it.
    Files.copy(checkpoint.resolve("tokenizer.json"), folder.resolve("tokenizer.json"));
    Path int8 = folder.resolve("few-int8.onnx");
    Run.of("quantize", out, "-o", int8, "--to", "onnx-int8", "--calibration", texts).done();
    JsonNode fidelity = Run.of("evaluate", out, int8, "--texts", texts, "--json").json();
    assertTrue(fidelity.path("cosine_min").asDouble() > 0.99, fidelity.toString());
  }

  /** Tables of 16 bits are cast before tokens are looked up in them. */
  @ParameterizedTest
  @ValueSource(strings = {"bfloat16", "float16", "onnx-float16"})
  void modelsOf16BitsLoseWords(String form) throws IOException {
    SmallCheckpoint.writeTextEncoder(checkpoint, "mpnet");
    boolean onnx = form.startsWith("onnx");
    Path half = folder.resolve(onnx ? "half.onnx" : "half");
    List<Object> args = new ArrayList<>(List.of("quantize", checkpoint, "-o", half, "--to", form));
    args.addAll(onnx ? List.of("--calibration", texts) : List.of());
    Run.of(args.toArray()).done();
    Path out = prune(half, folder.resolve("few.onnx"));
    JsonNode fidelity = Run.of("evaluate", half, out, "--texts", texts, "--json").json();
    assertEquals(1, fidelity.path("cosine_min").asDouble(), 1e-6);
  }

  /** Rows of integers and their scales go together. */
  @Test
  void int8ModelsLoseWords() throws IOException {
    SmallCheckpoint.writeTextEncoder(checkpoint, "mpnet");
    Path int8 = folder.resolve("int8.onnx");
    Run.of(
            "quantize",
            checkpoint,
            "-o",
            int8,
            "--to",
            "onnx-dynamic",
            "--calibration",
            texts,
            ExactProducts.areHere() ? "--verbose" : "--unsigned-weights")
        .done();
    Path out = prune(int8, folder.resolve("few.onnx"));
    JsonNode fidelity = Run.of("evaluate", int8, out, "--texts", texts, "--json").json();
    assertEquals(1, fidelity.path("cosine_min").asDouble(), 1e-6);
  }

  @Test
  void nothingIsWrittenWhereItCannotBe() throws IOException {
    SmallCheckpoint.writeTextEncoder(checkpoint, "mpnet");
    Path out = folder.resolve("few.onnx");
    Path empty = Files.writeString(folder.resolve("empty.txt"), "\n");
    byte[] tokenizer = Files.readAllBytes(checkpoint.resolve("tokenizer.json"));
    refused("holds no text", out, "--vocabulary", empty);
    refused("none.txt", out, "--vocabulary", folder.resolve("none.txt"));
    refused("not for --vocabulary", out, "--vocabulary", texts, "--calibration", texts);
    refused("not --vocabulary", out, "--vocabulary", texts, "--refit");
    refused("--include and --exclude", out, "--vocabulary", texts, "--include", "*");
    refused("mutually exclusive", out, "--vocabulary", texts, "--layers", "0.5");
    // A tokenizer of more words than the model has.
    Path other = folder.resolve("other.json");
    Files.writeString(
        other,
        Files.readString(checkpoint.resolve("tokenizer.json"))
            .replace("\"w0\":", "\"more\": 400, \"w0\":"));
    refused("is it another model's?", out, "--vocabulary", texts, "--tokenizer", other);
    assertFalse(Files.exists(folder.resolve("few-tokenizer.json")));
    assertArrayEquals(tokenizer, Files.readAllBytes(checkpoint.resolve("tokenizer.json")));
    // Its tokenizer would take the place of one that is read.
    Path own =
        Files.copy(checkpoint.resolve("tokenizer.json"), folder.resolve("few-tokenizer.json"));
    refused("few-tokenizer.json", out, "--vocabulary", texts, "--tokenizer", own);
    assertArrayEquals(tokenizer, Files.readAllBytes(own));
  }

  private void refused(String why, Path out, Object... more) {
    Object[] arguments = new Object[4 + more.length];
    System.arraycopy(new Object[] {"prune", checkpoint, "-o", out}, 0, arguments, 0, 4);
    System.arraycopy(more, 0, arguments, 4, more.length);
    Run.refused(folder, new String[] {why}, arguments);
  }
}
