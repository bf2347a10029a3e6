package org.espalier.cli;

import java.nio.file.Path;
import java.util.function.Consumer;
import org.espalier.InputException;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.source.MavenEntry;
import org.espalier.source.ModelSource;
import picocli.CommandLine.Option;

/** The options about how text becomes tokens. */
final class TokenizerOptions {
  @Option(
      names = "--tokenizer",
      paramLabel = "TOKENIZER.json",
      description =
          "The model's Hugging Face tokenizer. Default: STEM-tokenizer.json or tokenizer.json"
              + " beside the model, in its folder or artefact.")
  private String tokenizer;

  @Option(
      names = "--max-tokens",
      paramLabel = "N",
      defaultValue = "256",
      description = "Cut texts after N tokens, special ones included. Default: ${DEFAULT-VALUE}.")
  private int maxTokens;

  /** Whether the user named one. */
  boolean given() {
    return tokenizer != null;
  }

  /**
   * Opens the tokenizer that the user named, or the one beside the model.
   *
   * @param notes receives a line for people about a tokenizer that was found
   */
  TextTokenizer open(ModelSource model, Consumer<String> notes) {
    if (maxTokens < 3 || maxTokens > 1_000_000) {
      throw new InputException("--max-tokens " + maxTokens + " is outside 3 to 1000000");
    }
    Path file;
    if (tokenizer != null) {
      file =
          MavenEntry.isOne(tokenizer)
              ? model.maven().file(MavenEntry.parse(tokenizer))
              : ModelSource.path(tokenizer);
    } else {
      file = model.tokenizer("--tokenizer");
      if (model.entry() == null) {
        notes.accept("the tokenizer is " + file);
      }
    }
    return new TextTokenizer(file, maxTokens);
  }
}
