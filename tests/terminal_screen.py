"""A terminal of so many columns, as much of it as Rich needs."""

import re

TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[\]P].*?(?:\x07|\x1b\\)|([\r\n\b])|([^\x1b\r\n\b]+)", re.DOTALL)
BEGUN = re.compile(r"\x1b(\[[0-9;?]*|[\]P][^\x07\x1b]*\x1b?)?$")


class Screen:
    """What stands on the screen after all that was written: `lines`; `coloured` if anything ever was."""

    def __init__(self, width: int) -> None:
        self.width, self.lines, self.row, self.column = width, [""], 0, 0
        self.coloured, self.cursor_shown = False, True
        self._unread = ""  # the beginning of a control sequence whose end is still to come

    def write(self, text: str) -> int:
        """Show text with its control sequences; a terminal may be read in the middle of one."""
        length, text = len(text), self._unread + text
        begun = BEGUN.search(text)
        self._unread = begun.group() if begun else ""
        text = text.removesuffix(self._unread)
        for arguments, command, control, plain in TOKEN.findall(text):
            if command:
                self._command(arguments, command)
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self._down()
            elif control == "\b":
                self.column = max(0, self.column - 1)
            for character in plain:
                if self.column == self.width:  # the terminal wraps
                    self._down()
                    self.column = 0
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
                self.column += 1
        return length

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        return True

    def _down(self) -> None:
        self.row += 1
        self.column = 0
        if self.row == len(self.lines):
            self.lines.append("")

    def _command(self, arguments: str, command: str) -> None:
        if command == "A":
            self.row = max(0, self.row - int(arguments or 1))
        elif command == "K":
            assert arguments == "2", f"erase {arguments!r}"
            self.lines[self.row] = ""
        elif command == "m":
            self.coloured |= arguments not in ("", "0")
        elif arguments == "?25":
            self.cursor_shown = command == "h"
        else:
            raise AssertionError(f"a control sequence that this screen does not know: {arguments!r} {command!r}")
