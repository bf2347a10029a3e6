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
      description = "Cut texts after N tokens, special ones included. Default: 256.")
  private Integer maxTokens;

  /** The tokenizer that the user named; null for none. */
  String named() {
    return tokenizer;
  }

  /** Whether the user named a tokenizer. */
  boolean given() {
    return tokenizer != null;
  }

  /** Whether the user said anything of tokens. */
  boolean anyGiven() {
    return tokenizer != null || maxTokens != null;
  }

  /** After how many tokens a text is cut. */
  int maxTokens() {
    int most = maxTokens == null ? 256 : maxTokens;
    if (most < TextTokenizer.LEAST_TOKENS || most > TextTokenizer.MOST_TOKENS) {
      throw new InputException(
          "--max-tokens "
              + most
              + " is outside "
              + TextTokenizer.LEAST_TOKENS
              + " to "
              + TextTokenizer.MOST_TOKENS);
    }
    return most;
  }

  /**
   * Opens the tokenizer that the user named, or the one beside the model.
   *
   * @param notes receives a line for people about a tokenizer that was found
   */
  TextTokenizer open(ModelSource model, Consumer<String> notes) {
    int most = maxTokens();
    return new TextTokenizer(file(model, notes), most);
  }

  /** The file of the tokenizer that {@link #open} opens. */
  Path file(ModelSource model, Consumer<String> notes) {
    if (tokenizer != null) {
      return MavenEntry.isOne(tokenizer)
          ? model.maven().file(MavenEntry.parse(tokenizer))
          : ModelSource.path(tokenizer);
    }
    Path file = model.tokenizer("--tokenizer");
    if (model.entry() == null) {
      notes.accept("the tokenizer is " + file);
    }
    return file;
  }
}
