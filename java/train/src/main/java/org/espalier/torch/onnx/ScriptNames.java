package org.espalier.torch.onnx;

import java.util.Set;

/**
 * Names of a model as names in a module. What is no letter, digit or underscore of ASCII becomes an
 * underscore, so that no name can be anything but a name.
 */
final class ScriptNames {
  private static final int LONGEST = 200;

  /** Words that TorchScript's parser gives a meaning. */
  private static final Set<String> KEYWORDS =
      Set.of(
          "False",
          "None",
          "True",
          "and",
          "as",
          "assert",
          "async",
          "await",
          "break",
          "class",
          "continue",
          "def",
          "del",
          "elif",
          "else",
          "except",
          "finally",
          "for",
          "from",
          "global",
          "if",
          "import",
          "in",
          "inf",
          "is",
          "lambda",
          "nan",
          "nonlocal",
          "not",
          "or",
          "pass",
          "raise",
          "return",
          "try",
          "while",
          "with",
          "yield");

  /** Names that the source of a module uses for something else. */
  static final Set<String> RESERVED =
      Set.of(
          "CONSTANTS",
          "Dict",
          "Exception",
          "Future",
          "List",
          "Module",
          "Optional",
          "Tensor",
          "Tuple",
          "abs",
          "annotate",
          "bool",
          "float",
          "forward",
          "getattr",
          "int",
          "isinstance",
          "len",
          "list",
          "max",
          "min",
          "none",
          "ops",
          "print",
          "range",
          "self",
          "str",
          "torch",
          "training",
          "uninitialized",
          "unchecked_cast");

  private ScriptNames() {}

  /** A name of an argument or variable. */
  static String variable(String wanted) {
    String plain = plain(wanted);
    String name = Character.isDigit(plain.charAt(0)) ? "input_" + plain : plain;
    return RESERVED.contains(name) ? name + "_" : name;
  }

  /**
   * A name of a parameter or a module inside a module; it may begin with a digit. libtorch names variables
   * after members when it writes a module, so members avoid the names of other things too.
   */
  static String member(String name) {
    String plain = plain(name);
    return RESERVED.contains(plain) && !plain.equals("self") ? plain + "_" : plain;
  }

  private static String plain(String name) {
    String plain = name.replaceAll("[^A-Za-z0-9_]", "_");
    plain = plain.substring(0, Math.min(LONGEST, plain.length()));
    // Names of our own and of Python's modules begin with an underscore.
    plain = plain.isEmpty() || plain.startsWith("_") ? "x" + plain : plain;
    return KEYWORDS.contains(plain) ? plain + "_" : plain;
  }

  /** The name, with a number where it is taken; adds it to those taken. */
  static String unique(String name, Set<String> taken) {
    String unique = name;
    for (int i = 1; !taken.add(unique); i++) {
      unique = name + "_" + i;
    }
    return unique;
  }

  /** A member of an object as an expression. */
  static String access(String object, String member) {
    return Character.isDigit(member.charAt(0))
        ? "getattr(" + object + ", \"" + member + "\")"
        : object + "." + member;
  }
}
