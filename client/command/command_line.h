// The command as a function of its arguments.
#ifndef GRADCLIP_CLIENT_COMMAND_COMMAND_LINE_H_
#define GRADCLIP_CLIENT_COMMAND_COMMAND_LINE_H_

namespace gradclip {

// Does what the arguments ask for and returns the process's exit status: 0, or 1 after one line on
// standard error that says what to do.
int RunCommandLine(int argc, const char* const* argv);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_COMMAND_LINE_H_
