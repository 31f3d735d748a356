// What a signal that ends the command leaves behind: nothing.
#ifndef GRADCLIP_CLIENT_COMMAND_INTERRUPT_H_
#define GRADCLIP_CLIENT_COMMAND_INTERRUPT_H_

namespace gradclip {

// From here on SIGINT, SIGTERM and SIGHUP first remove temporary files, then end the process as
// they would have. Those that the process was started to ignore stay ignored. Call it once, before
// any other thread is started: it blocks the signals, and threads inherit that.
void RemoveStagedFilesOnSignals();

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_INTERRUPT_H_
